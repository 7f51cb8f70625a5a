"""Every method by one command, and the table of what came of it."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from src.reporting.results import find_results
from src.reporting.tables import table
from src.running import runs
from src.sweeping.jobs import Job, note_failure, plan
from tests.conftest import ROOT, Begin, Run, Started
from tests.reporting.conftest import changed

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def sweep(shared_folder: Path, cache: Path, command: Run) -> Path:
    """A run of every method, made once by one command: an epoch of few digits."""
    sweep = shared_folder / "sweep_of_methods"
    few = ["dataset=digits", "dataset.limit=300", "backbone=resnet18_slim", "input.size=16", "trainer.max_epochs=1"]
    few += ["callbacks.pictures=null", "logger=none", "hydra.launcher.jobs=2"]
    settings = ["method=glob(*)", *few, f"sweep_dir={sweep}/all"]
    with FileLock(f"{sweep}.lock"):  # a second time finds every run finished
        done = command("src.train", "-m", *settings, ISIF_CACHE=str(cache), HOME=str(shared_folder))
    assert done.returncode == 0, done.stderr
    return sweep


def test_every_method_runs_by_one_command(run: Run, sweep: Path) -> None:
    results, left_out = find_results([sweep])
    assert not left_out
    assert sorted(result["choices"]["method"] for result in results) == METHODS
    assert len({result["untrained"]["knn/top1"] for result in results}) == 1, "they start from one network"
    for result in results:
        method = result["choices"]["method"]
        assert result["last"]["epoch"] == (0 if method == "untrained" else 1)
        assert result["protocol"]["labels_used"] == (method == "supervised")
        assert ("train/refresh_s" in result["last"]) == (method in ("deepcluster", "mom", "stml", "stml_products"))
    said = [path for path in sweep.glob("all/*/log.txt") if "training labels are used" in path.read_text()]
    assert ["method=supervised" in path.parent.name for path in said] == [True]

    (nce,) = sweep.glob("all/*method=nce*")
    again = run("src.evaluate", f"run={nce}")  # its memory is in the checkpoint
    assert again.returncode == 0, again.stderr
    report = run("src.report", str(sweep))
    assert report.returncode == 0, report.stderr
    for method in METHODS:
        assert f"| method={method}{' (labels used)' * (method == 'supervised')} | knn/top1 | 1 |" in report.stdout


def by_method(sweep: Path, method: str) -> dict[str, Any]:
    return next(result for result in find_results([sweep])[0] if result["choices"]["method"] == method)


def test_what_the_best_was_chosen_on_is_said(sweep: Path) -> None:
    nce = by_method(sweep, "nce")
    assert nce["protocol"]["validation"] is None
    before = changed(nce)
    del before["protocol"]["validation"]  # as runs were before there was such a thing
    held_out = changed(nce, config__dataset__validation=0.1, protocol__validation="144 of the training images")
    for row in ("untrained", "last", "best"):
        held_out[row] |= {"validation/knn/top1": 12.5, "validation/pooled/knn/top1": 13.5}
    for results, texts in (
        ([before], ["best epoch, chosen on the test images |"]),
        ([held_out], ["best epoch, chosen on held-out training images |"]),
        ([nce, held_out], ["chosen on the test images |", "chosen on held-out training images |"]),
    ):
        lines = table(results)
        assert all(text in lines for text in texts)
        assert ("144 of the training images held out, 360 test images" in lines) == (held_out in results)
        assert ("| validation/knn/top1 | 1 | 12.50 | 12.50 |  | 12.50 |  |  | 13.50 | 13.50 |" in lines) == (
            held_out in results
        )


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


def test_a_sweep_becomes_a_page(run: Run, sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text("{}")
    (tmp_path / "foreign" / "sweep.json").write_text("[]")
    done = run("src.report", str(sweep), str(tmp_path / "foreign"), "--out", str(tmp_path / "new" / "page"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"{tmp_path}/new/page/index.html")
    page = tmp_path / "new" / "page"
    assert (page / "tables.md").read_text().strip() in done.stdout
    assert (page / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = (page / "index.html").read_text()
    assert all(f"method={method}" in text for method in METHODS)
    assert f"{tmp_path}/foreign/results.json" in text
    assert f"{tmp_path}/foreign/sweep.json is no sweep" in text


def test_watching_needs_a_page(run: Run, tmp_path: Path) -> None:
    done = run("src.report", str(tmp_path), "--watch")
    assert done.returncode == 1
    assert done.stderr == "error: --watch: say with --out PAGE which page to keep\n"


def start_watching(begin: Begin, sweep: Path, page: Path) -> Started:
    started = begin("src.report", str(sweep), "--out", str(page), "--watch")
    end = time.monotonic() + 300
    while not (page / "index.html").exists() and time.monotonic() < end and started.poll() is None:
        time.sleep(0.1)
    return started


def test_a_watch_ends_with_the_sweep(begin: Begin, sweep: Path, tmp_path: Path) -> None:
    job = Job(tmp_path / "sweep", ("seed=7",))
    plan(job.sweep, [job])
    started = start_watching(begin, job.sweep, tmp_path / "page")
    assert '"refresh":5' in (tmp_path / "page" / "index.html").read_text()
    job.folder.mkdir()
    runs.write_results(job.folder, by_method(sweep, "nce"))
    done = started.ended(300)
    assert done.returncode == 0, done.stderr
    assert "knn/top1" in done.stdout
    assert '"refresh":null' in (tmp_path / "page" / "index.html").read_text()


def test_a_signal_ends_a_watch_with_a_page_that_rests(begin: Begin, tmp_path: Path) -> None:
    plan(tmp_path / "sweep", [Job(tmp_path / "sweep", ("seed=7",))])
    started = start_watching(begin, tmp_path / "sweep", tmp_path / "page")
    started.send_signal(signal.SIGINT)
    assert started.ended(300).returncode == 130
    assert '"refresh":null' in (tmp_path / "page" / "index.html").read_text()


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
