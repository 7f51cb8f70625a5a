"""Every method by one command, and the table of what came of it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from src.reporting.figure import draw
from src.reporting.results import PAPER, find_results, group_by_setting, paper_numbers
from src.reporting.table import table
from src.running import runs
from src.sweeping.jobs import Job, note_failure, plan
from tests.conftest import ROOT, Run

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


def test_every_method_runs_by_one_command(run: Run, sweep: Path) -> None:
    done = run(
        "src.train",
        "-m",
        "method=glob(*)",
        "dataset=digits",
        "dataset.limit=500",
        "trainer.max_epochs=1",
        "logger=none",
        f"sweep_dir={sweep}/all",
        "hydra.launcher.jobs=2",
    )
    assert done.returncode == 0, done.stderr
    results, left_out = find_results([sweep])
    assert not left_out
    assert sorted(result["choices"]["method"] for result in results) == METHODS
    assert len({result["untrained"]["knn/top1"] for result in results}) == 1, "they start from one network"
    for result in results:
        method = result["choices"]["method"]
        assert result["last"]["epoch"] == (0 if method == "untrained" else 1)
        assert result["protocol"]["labels_used"] == (method == "supervised")
        assert ("train/refresh_s" in result["last"]) == (method in ("deepcluster", "mom"))
    said = [path for path in sweep.glob("all/*/log.txt") if "training labels are used" in path.read_text()]
    assert [path.parent.name.split(",")[2] for path in said] == ["method=supervised"]

    (nce,) = sweep.glob("all/*method=nce*")
    again = run("src.evaluate", f"run={nce}")  # its memory is in the checkpoint
    assert again.returncode == 0, again.stderr
    report = run("src.report", str(sweep), "--figure", str(sweep / "curves.png"))
    assert report.returncode == 0, report.stderr
    for method in METHODS:
        assert f"| method={method}{' (labels used)' * (method == 'supervised')} | knn/top1 | 1 |" in report.stdout
    assert (sweep / "curves.png").read_bytes().startswith(b"\x89PNG")


def changed(result: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A copy with some of its config replaced: `method__clusters=10`, `seed=1`, or a score of its last epoch."""
    copy = json.loads(json.dumps(result))
    for name, value in values.items():
        *path, key = name.split("__")
        node = copy
        for step in path:
            node = node[step]
        node[key] = value
    return copy


def by_method(sweep: Path, method: str) -> dict[str, Any]:
    return next(result for result in find_results([sweep])[0] if result["choices"]["method"] == method)


def test_seeds_are_averaged_and_settings_kept_apart(sweep: Path) -> None:
    nce = by_method(sweep, "nce")
    score = nce["last"]["knn/top1"]
    other = changed(nce, config__seed=1, config__dataset__seed=1, seed=1)
    other["last"]["knn/top1"] = score + 2
    hotter = changed(nce, config__method__temperature=0.2)
    groups = group_by_setting([nce, other, hotter])
    assert {name: len(runs) for name, runs in groups.items()} == {
        "method.temperature=0.1": 2,
        "method.temperature=0.2": 1,
    }
    lines = table([nce, other, hotter]).splitlines()
    mean = f"{score + 1:.2f} ({score:.2f} to {score + 2:.2f})"
    assert any("method.temperature=0.1 | knn/top1 | 2 |" in line and mean in line for line in lines)


def test_what_the_best_was_chosen_on_is_said(sweep: Path) -> None:
    nce = by_method(sweep, "nce")
    assert nce["protocol"]["validation"] is None
    before = changed(nce)
    del before["protocol"]["validation"]  # as runs were before there was such a thing
    held_out = changed(nce, config__dataset__validation=0.1, protocol__validation="144 of the training images")
    for row in ("untrained", "last", "best"):
        held_out[row] |= {"validation/knn/top1": 12.5, "validation/pooled/knn/top1": 13.5}
    for results, text in (
        ([before], "best epoch, chosen on the test images |"),
        ([held_out], "best epoch, chosen on held-out training images |"),
        ([nce, held_out], "best epoch, chosen on held-out training images or the test images |"),
    ):
        lines = table(results)
        assert text in lines
        assert ("144 of the training images held out, 360 test images" in lines) == (held_out in results)
        assert ("| validation/knn/top1 | 1 | 12.50 | 12.50 | 12.50 |" in lines) == (held_out in results)
        assert "pooled" not in lines


def test_the_papers_numbers_stand_beside_its_own_systems(sweep: Path) -> None:
    ours, cluster = by_method(sweep, "invariant_spreading"), by_method(sweep, "deepcluster")
    assert paper_numbers(ours) == {}, "the paper has no digits"
    assert paper_numbers(changed(ours, config__dataset__name="cifar10")) == {"knn/top1": 83.6}
    cifar = changed(cluster, config__dataset__name="cifar10")
    assert paper_numbers(cifar) == {}, "100 clusters are on STL-10 only"
    assert paper_numbers(changed(cifar, config__method__clusters=10)) == {"knn/top1": 44.4}
    stl = changed(ours, config__dataset__name="stl10", config__dataset__split="train+unlabeled")
    assert paper_numbers(stl)["knn/top1"] == 81.6
    scratch = changed(ours, config__dataset__name="products")
    assert paper_numbers(scratch)["retrieval/R@1"] == 39.7
    assert "| 83.6 |" in table([changed(ours, config__dataset__name="cifar10")])


def test_quoted_systems_are_marked() -> None:
    with PAPER.open(newline="") as file:
        rows = list(csv.DictReader(file))
    quoted = {row["system"] for row in rows if row["note"].startswith("quoted")}
    seen, unseen = (
        {"k-MeansNet", "HMP", "Stacked what-where", "Exemplar"},
        {"Lifted", "Clustering", "Triplet+", "Smart+"},
    )
    assert quoted == seen | unseen | {"Cyclic"}
    assert all((row["run"] == "") == row["note"].startswith("quoted") for row in rows)
    assert {row["run"].split("(")[0] for row in rows} - {""} <= set(METHODS)


def test_a_figure_of_runs_with_few_scores(sweep: Path, tmp_path: Path) -> None:
    draw([by_method(sweep, "untrained")], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_no_runs(run: Run, tmp_path: Path) -> None:
    done = run("src.report", str(tmp_path))
    assert done.returncode == 1
    assert f"error: no run's results.json in {tmp_path}" in done.stderr


def test_copies_count_once_and_what_no_run_wrote_is_left_out(run: Run, sweep: Path, tmp_path: Path) -> None:
    nce = by_method(sweep, "nce")
    content = {
        "a": nce,
        "copy": nce,
        "other": changed(nce, config__seed=1, seed=1),
        "foreign": [1, 2],
        "text": changed(nce, config__seed=2, last__epoch="many"),
        "nan": changed(nce, config__seed=3, history=[{"epoch": 1, "knn/top1": "high"}]),
        "bare": {"last": {"epoch": 1}},
    }
    for name, results in content.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "results.json").write_text(json.dumps(nce)[:100])
    found, left_out = find_results([tmp_path])
    assert [result["config"]["seed"] for result in found] == [0, 1]
    assert len(left_out) == 6
    assert f"{tmp_path}/copy has the config and the seed of {tmp_path}/a" in left_out
    report = run("src.report", str(tmp_path))
    assert report.returncode == 0, report.stderr
    assert "| 2 |" in report.stdout
    assert report.stderr.count("left out: ") == 6
    broken = run("src.report", str(tmp_path / "half"))
    assert broken.returncode == 1
    assert len(broken.stderr.splitlines()) == 1


def test_a_figure_for_a_folder_that_is_not_there(run: Run, sweep: Path) -> None:
    done = run("src.report", str(sweep), "--figure", str(sweep / "none" / "x.png"))
    assert done.returncode == 1
    assert done.stderr == f"error: --figure {sweep}/none/x.png: there is no folder {sweep}/none\n"


def test_a_sweep_can_be_looked_at_while_it_runs(run: Run, tmp_path: Path) -> None:
    jobs = [Job(tmp_path, (f"seed={number}",)) for number in range(3)]
    plan(tmp_path, jobs)
    for job in jobs[:2]:
        job.folder.mkdir()
    note_failure(jobs[1], 1)
    with runs.claimed(jobs[0].folder):
        progress = {"epoch": 3, "epochs": 9, "monitor": "knn/top1", "scores": [[3, 40.5]], "seconds_left": 400}
        runs.write_progress(jobs[0].folder, progress)
        done = run("src.report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith(f"running  {jobs[0].folder}  epoch 3 of 9, knn/top1 40.50, 7 min left; process ")
    assert said[1].startswith(f"failed   {jobs[1].folder}")
    assert said[2] == f"waiting  {jobs[2].folder}"
    assert said[3] == "3 runs: 1 running, 1 failed, 1 waiting"
