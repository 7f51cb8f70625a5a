"""A job is known by its settings; how it stands is read from its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.running import runs
from src.running.checkpoints import EXPORTED
from src.sweeping.jobs import FAILURE, HEADING, LOG, Job, find_runs, note_failure, plan, planned, standing, under_way


def job(sweep: Path, *overrides: str, **more: Any) -> Job:
    return Job(sweep, overrides, **more)


def test_a_name_says_the_settings_in_any_order_and_nothing_of_places(tmp_path: Path) -> None:
    one = job(tmp_path, "seed=1", "method=nce", "logger=csv", "cache_dir=/x", "sweep_dir=/y")
    other = job(tmp_path, "method=nce", "+seed=1", "logger.project=a")
    assert one.name == "method=nce,seed=1"
    assert other.name == "+seed=1,method=nce"
    assert job(tmp_path, "logger=csv").name == "defaults"


def test_what_no_file_can_be_called_keeps_jobs_apart(tmp_path: Path) -> None:
    values = ["/a/b", "/a-b", "a b", "é", "[1,2]", "x" * 400, "x" * 401, "..", "{a:1}"]
    jobs = [job(tmp_path, f"dataset.root={value}") for value in values]
    assert len({job.name for job in jobs}) == len(values)
    for one in jobs:
        assert len(one.name) < 200
        assert one.folder.parent == tmp_path
        one.folder.mkdir()


@pytest.mark.parametrize(
    ("devices", "here", "taken"), [(1, 4, 1), (2, 4, 2), (-1, 4, 4), ("auto", 3, 3), ("2", 4, 2), ([0, 2], 4, 2)]
)
def test_devices(tmp_path: Path, devices: Any, here: int, taken: int) -> None:
    assert job(tmp_path, trainer={"devices": devices}).devices(here) == taken


def test_the_plan_grows_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert planned(tmp_path) == {}
    plan(tmp_path, [job(tmp_path, "seed=1")])
    plan(tmp_path, [job(tmp_path, "seed=2"), job(tmp_path, "seed=1")])
    assert planned(tmp_path) == {"seed=1": ["seed=1"], "seed=2": ["seed=2"]}
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(ValueError, match="is no sweep's plan"):
        planned(tmp_path)


def test_how_a_run_stands(tmp_path: Path) -> None:
    run = job(tmp_path, "seed=1")
    plan(tmp_path, [run, job(tmp_path, "seed=2")])
    assert standing(run.folder).kind == "waiting"
    run.folder.mkdir()
    with runs.claimed(run.folder):
        scores = [[0, 20.0], [3, 40.5]]
        progress = {"epoch": 3, "epochs": 9, "monitor": "knn/top1", "scores": scores, "seconds_left": 4000.0}
        runs.write_progress(run.folder, progress)
        now = standing(run.folder)
        assert now.kind == "running"
        assert now.text.startswith("epoch 3 of 9, knn/top1 40.50, 1 h 7 min left; process ")
        assert now.text.startswith(f"{under_way(run.folder).text}; ")
        assert find_runs([tmp_path])[tmp_path / "seed=2"].kind == "waiting"
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "last.ckpt").touch()
    assert standing(run.folder).kind == "cut off"
    (run.folder / LOG).write_text(f"{HEADING}a\nerror: of before\n{HEADING}b\nwarning\nerror: no such place\n")
    note_failure(run, 1)
    assert (standing(run.folder).kind, standing(run.folder).text) == ("failed", "no such place")
    results = {"last": {"epoch": 9, "knn/top1": 50.0}, "monitor": "knn/top1"}
    (run.folder / "results.json").write_text(json.dumps(results))
    (run.folder / FAILURE).unlink()
    note_failure(run, 1)
    assert standing(run.folder).score == 50.0
    assert {run.name: now.kind for run, now in find_runs([tmp_path]).items()} == {
        "seed=1": "finished",
        "seed=2": "waiting",
    }
    (run.folder / "results.json").write_text("{")
    assert standing(run.folder).kind == "failed"


def test_a_comma_in_a_path_makes_no_two_values() -> None:
    read = OverridesParser.create().parse_override
    for sweep in ("/data/a,b", "/data/[a] {b}", "/data/ä b", '/data/a"b'):
        places = Job(Path(sweep), ("seed=1",)).command[-2:]
        assert [read(place).value() for place in places] == [sweep, f"{sweep}/seed=1"], "one text each"
        assert not any(read(place).is_sweep_override() for place in places)
    assert Job(Path("/data/a b"), ()).command[-2] == 'sweep_dir="/data/a b"'
    assert Job(Path("/data/a-b"), ()).command[-2] == "sweep_dir=/data/a-b"


def test_other_configs_below_a_run_are_no_runs(tmp_path: Path) -> None:
    """Those of an exported network, and W&B's."""
    for place in ("run", "run/exported/safetensors", "run/wandb/run-1/files"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.yaml").touch()
    (tmp_path / "run/exported/safetensors" / EXPORTED).touch()
    assert list(find_runs([tmp_path])) == [tmp_path / "run"]


def test_what_cannot_be_read_has_failed_and_the_others_are_listed(tmp_path: Path) -> None:
    run, unread = job(tmp_path, "seed=1"), job(tmp_path, "seed=2")
    plan(tmp_path, [run, unread])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "sweep.json").write_text("[1]")
    unread.folder.mkdir()
    (unread.folder / FAILURE).write_bytes(b"\xff")
    found = find_runs([tmp_path])
    assert {path.name: now.kind for path, now in found.items()} == {
        "foreign": "failed",
        "seed=1": "waiting",
        "seed=2": "failed",
    }
    assert "is no sweep's plan" in found[tmp_path / "foreign"].text
    assert found[unread.folder].text.startswith("it can't be read: ")


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        ("", -9, "ended by signal 9"),
        ("Killed\n", -9, "ended by signal 9"),
        ("A\nKeyError: 'x'\n\n", 1, "KeyError: 'x'"),
    ],
)
def test_why_a_job_failed(tmp_path: Path, said: str, status: int, text: str) -> None:
    run = job(tmp_path, "seed=1")
    run.folder.mkdir()
    (run.folder / LOG).write_text(f"{HEADING}python\n{said}")
    note_failure(run, status)
    assert standing(run.folder).text == text
