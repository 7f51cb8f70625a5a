"""The page's numbers are those of results.json; whatever a run folder holds is shown as text or left out."""

import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.reporting import page, pictures
from src.reporting.results import find_results
from src.running import runs
from src.sweeping.jobs import Job, plan, planned
from tests.reporting.conftest import changed, write_runs
from tests.reporting.test_results import HISTOGRAM

EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'`${window.hit=1}{{7*7}}"


class Parsed(HTMLParser):
    """The texts of the scripts in a page, and the names of its elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.names: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names += [tag, *(name for name, _ in attrs)]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def written(folder: Path, out: Path, others: list[tuple[str, str, str]] | None = None) -> dict[str, Any]:
    """Write the page of the runs in `folder`; its data."""
    page.write(out, find_results([folder])[0], others or [], {})
    return dict(json.loads(Parsed((out / "index.html").read_text()).scripts[0]))


def test_every_number_is_that_of_results_json(result: dict[str, Any], tmp_path: Path) -> None:
    folders = write_runs(tmp_path / "runs", [changed(result, seed) for seed in range(3)])
    (section,) = written(tmp_path / "runs", tmp_path / "page")["sections"]
    measured = [json.loads((folder / "results.json").read_text()) for folder in folders]
    rows = [dict(zip(section["runs"]["columns"], row, strict=True)) for row in section["runs"]["rows"]]
    for row, run in zip(rows, measured, strict=True):
        assert row["seed"][0] == run["seed"]
        assert row["untrained"][0] == run["untrained"]["knn/top1"]
        assert row["last epoch"][0] == run["last"]["knn/top1"]
        assert [row["95% interval"][0], row["95% interval"][3]] == run["intervals"]["knn/top1"]
        assert row["best epoch"][0] == run["best"]["knn/top1"]
        assert row["epoch of the best"][0] == run["best"]["epoch"]
        assert row["pooled: last epoch"][0] == run["last"]["pooled/knn/top1"]
        assert (row["images/s"][0], row["seconds"][0]) == (run["images_per_s"], run["wall_time_s"])
    for name, (curve,) in section["curves"]["lines"].items():
        for epoch, mean, deviation in zip(*curve, strict=True):
            values = [run["history"][epoch][name] for run in measured]
            assert mean == pytest.approx(sum(values) / 3)
            assert deviation == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2), abs=1e-9)
    assert section["curves"]["left_out"] == 0
    assert {"knn/top1", "train/loss"} < section["curves"]["lines"].keys()
    scored = {row[1]: row[4] for row in section["scores"]["rows"]}
    for name in ("knn/top1", "knn/top5", "geometry/rank", "train/alignment"):
        assert scored[name][0] == pytest.approx(sum(run["last"][name] for run in measured) / 3)


def test_all_files_are_there_and_the_page_asks_for_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    spaces = {space: {"classes": HISTOGRAM} for space in ("embedding", "pooled")}
    write_runs(tmp_path / "runs", [changed(result, seed, histograms=spaces) for seed in range(2)])
    written(tmp_path / "runs", tmp_path / "page")
    figures = {f"{name}.{kind}" for name in ("curves", "ablations", "histograms") for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "page").iterdir()} == figures | {"tables.md", "tables.tex", "index.html"}
    text = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"<(link|iframe|object|embed|base)\b", text)
    assert all(source.startswith("data:image/webp") for source in re.findall(r'<img[^>]* src="([^"]*)"', text))
    assert text.count("Permission is hereby granted") == 5, "Chart.js and what it is made with are MIT-licensed"


def test_a_strangers_names_run_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    evil = changed(result, choices__method=EVIL, config__method__note=EVIL, protocol__preset=EVIL, protocol__query=EVIL)
    evil["hardware"]["cpu"] = EVIL
    evil["pictures"] = [{"title": EVIL, "kind": EVIL, "epoch": 1, "png": "a.png"}]
    evil["history"][0][EVIL] = 1.0
    (folder,) = write_runs(tmp_path / "runs", [evil])
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / runs.OVERRIDES).write_text(json.dumps([EVIL]))
    data = written(tmp_path / "runs", tmp_path / "page", [("failed", EVIL, EVIL)])
    parsed = Parsed((tmp_path / "page" / "index.html").read_text())
    assert len(parsed.scripts) == 3, "its data, Chart.js, and ours"
    assert not {"onerror", "onload"} & set(parsed.names)
    assert parsed.names.count("img") == 5, "three figures, a picture, and that of the dialog"
    assert data["others"]["rows"] == [["failed", EVIL, EVIL]]
    assert shlex.split(data["sections"][0]["details"]["commands"][0]) == ["python", "-m", "src.train", EVIL]
    assert "49" not in data["sections"][0]["runs"]["rows"][0][0]


def test_numbers_that_are_none_are_no_json(result: dict[str, Any], tmp_path: Path) -> None:
    lost = changed(result)
    lost["last"]["knn/top1"] = math.nan
    write_runs(tmp_path / "runs", [lost, changed(result, 1)])
    (section,) = written(tmp_path / "runs", tmp_path / "page")["sections"]
    assert section["runs"]["rows"][0][3][0] is None


def test_pictures(result: dict[str, Any], tmp_path: Path) -> None:
    def picture(png: str) -> dict[str, Any]:
        return {"title": png, "kind": "gallery", "epoch": 1, "png": png, "svg": "no.svg"}

    names = ["figures/a.png", "figures/wide.png", "../secret.png", str(tmp_path / "secret.png"), "none.png", "bad.png"]
    run = changed(result, pictures=[picture(name) for name in names])
    (folder,) = write_runs(tmp_path / "runs", [run])
    (folder / "figures").mkdir()
    Image.new("RGBA", (30, 20), (255, 0, 0, 128)).save(folder / "figures" / "a.png")
    Image.effect_noise((3000, 500), 90).save(folder / "figures" / "wide.png")
    for path in (tmp_path / "secret.png", tmp_path / "runs" / "secret.png"):
        Image.new("L", (8, 8)).save(path)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = written(tmp_path / "runs", tmp_path / "page")
    assert {path.name for path in (tmp_path / "page" / "pictures").iterdir()} == {"001.png", "002.png"}
    left = {Path(where).name if "secret" not in where else where: why for _, where, why in data["others"]["rows"]}
    assert len(left) == 4
    assert sum("does not lie in the run's folder" in why for why in left.values()) == 2
    text = (tmp_path / "page" / "index.html").read_text()
    assert "seed 0: figures/a.png, epoch 1" in text


def test_pictures_have_a_limit(result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [{"title": "a", "kind": "map", "epoch": 1, "png": f"{number}.png"} for number in range(3)]
    (folder,) = write_runs(tmp_path / "runs", [changed(result, pictures=drawn)])
    for number in range(3):
        Image.effect_noise((400, 400), 90).save(folder / f"{number}.png")
    source = pictures.embed(Image.open(folder / "0.png"))
    monkeypatch.setattr(pictures, "WEIGHT", 2 * len(source) + len(source) // 2)
    data = written(tmp_path / "runs", tmp_path / "page")
    assert [where for _, where, _ in data["others"]["rows"]] == [str(folder / "2.png")]


def test_the_command_is_what_was_typed(real: Path, result: dict[str, Any]) -> None:
    typed = page.command(result, [], {real: ["seed=9"]})
    assert typed == (
        "python -m src.train dataset.limit=300 input.size=16 trainer.max_epochs=2 logger=none augmentation=full "
        "trainer.accelerator=cpu"
    )


def test_the_command_of_an_older_run(result: dict[str, Any], tmp_path: Path) -> None:
    old = changed(result, 3, folder=str(tmp_path / "seed=3"))
    job = Job(tmp_path, ("seed=3", "method.temperature=0.2"))
    plan(tmp_path, [Job(tmp_path, ("seed=3",))])
    plans = {tmp_path / name: overrides for name, overrides in planned(tmp_path).items()}
    assert page.command(old, [], plans) == "python -m src.train seed=3"
    assert "method=invariant_spreading" in page.command(old, [], {job.folder: job.overrides}), "that is another run's"
    words = shlex.split(page.command(old, ["optimizer.lr", "method._target_", "backbone.width"], {}))
    assert {
        "seed=3",
        "optimizer.lr=0.03",
        "backbone.width=16",
        "dataset.limit=300",
        "trainer.max_epochs=2",
        "method=invariant_spreading",
    } < {*words}
    assert not any("_target_" in word for word in words)


def test_a_page_of_nothing_finished(tmp_path: Path) -> None:
    page.write(tmp_path / "page", [], [("waiting", "a", "")], {}, refresh=5)
    data = json.loads(Parsed((tmp_path / "page" / "index.html").read_text()).scripts[0])
    assert data == {
        "refresh": 5,
        "sections": [],
        "others": {"columns": ["how", "where", "why"], "rows": [["waiting", "a", ""]]},
    }


def test_folders_with_names_that_are_no_unicode(result: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a\udcff"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(changed(result)))
    (section,) = written(tmp_path / "runs", tmp_path / "page")["sections"]
    assert section["runs"]["rows"][0][-1].startswith(str(tmp_path))


def test_details_tell_a_run_from_the_others(result: dict[str, Any], tmp_path: Path) -> None:
    hotter = changed(result, 0, config__method__temperature=0.2)
    write_runs(tmp_path / "runs", [changed(result, 0), changed(result, 1), hotter])
    (section,) = written(tmp_path / "runs", tmp_path / "page")["sections"]
    details = section["details"]
    assert (details["keys"], details["usual"]) == (["method.temperature"], ["0.1"])
    assert details["runs"] == [["0.1"], ["0.1"], ["0.2"]]
