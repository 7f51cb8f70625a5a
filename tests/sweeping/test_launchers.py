"""Jobs that are short scripts: how many at once, on which GPUs, and what one's failure or the sweep's end does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.running import runs
from src.running.ranks import STARTED_BY
from src.sweeping import launchers
from src.sweeping.jobs import Job, Standing, standing
from src.sweeping.launchers import Local
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
FINISH = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "times").open("a").write("x")
(folder / "results.json").write_text(json.dumps({"last": {"epoch": 1, "knn/top1": 50}, "monitor": "knn/top1"}))
"""
BUSY = """
import os, pathlib, sys, time
for name in os.environ.get("CUDA_VISIBLE_DEVICES", "7").split(","):
    place = pathlib.Path(sys.argv[1]).parent / f"busy-{name}"
    place.touch(exist_ok=False)
    time.sleep(0.3)
    place.unlink()
"""


class Script(Job):
    """A job whose command is the Python code that its one override is."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.overrides[0], str(self.folder)]


def script(sweep: Path, code: str, devices: Any = 1) -> Script:
    return Script(sweep, (code,), trainer={"devices": devices, "num_nodes": 1, "accelerator": "auto"})


def local(most: int, *gpus: str) -> Local:
    launcher = Local(most)
    launcher.gpus = list(gpus)
    return launcher


def numbered(sweep: Path, count: int, code: str = "", devices: int = 1) -> list[Job]:
    return [script(sweep, f"number = {number}\n{code}\n{FINISH}", devices) for number in range(count)]


def times(sweep: Path) -> list[int]:
    return [len(path.read_text()) for path in sweep.glob("*/times")]


def test_a_failure_leaves_the_others_alone_and_is_tried_again_and_the_rest_is_not(tmp_path: Path) -> None:
    bad = script(tmp_path, "raise SystemExit('error: no luck')")
    jobs = [*numbered(tmp_path, 2), bad, *numbered(tmp_path / "more", 2)]
    told: list[tuple[Job, str]] = []

    def tell(job: Job, now: Standing) -> None:
        told.append((job, now.kind))

    ended = local(2).run(iter(jobs), len(jobs), ended=tell)
    assert {job: now.kind for job, now in ended.items()} == dict(told)
    assert [ended[job].kind for job in jobs] == ["finished", "finished", "failed", "finished", "finished"]
    assert ended[bad].text == "no luck"
    assert ended[jobs[0]].score == 50
    bad.folder.joinpath("log.txt").unlink()
    local(2).run(iter(jobs), len(jobs))
    assert times(tmp_path) + times(tmp_path / "more") == [1] * 4, "nothing that was finished ran again"
    assert bad.folder.joinpath("log.txt").exists()


def test_no_more_at_once_than_asked_for_and_drawn_no_sooner(tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    code = f"import os, time\nopen('{tmp_path}/now/%d' % number, 'w').close()\ntime.sleep(1)\n"
    code += f"there = os.listdir('{tmp_path}/now')\nopen('{tmp_path}/most', 'a').write('%d ' % len(there))\n"
    code += f"os.remove('{tmp_path}/now/%d' % number)"
    drawn: list[float] = []
    ended: list[float] = []

    def draw() -> Iterator[Job]:
        for job in numbered(tmp_path / "sweep", 5, code):
            drawn.append(time.monotonic())
            yield job

    local(2).run(draw(), 5, ended=lambda job, now: ended.append(time.monotonic()))
    assert max(map(int, (tmp_path / "most").read_text().split())) == 2
    assert sum(moment < min(ended) for moment in drawn) == 2, "a later one may depend on how an earlier one ended"


def test_two_sweeps_share_gpus_without_collision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sweeping.launchers.LOCKS", tmp_path / "locks")
    kept = [numbered(tmp_path, 3, BUSY), numbered(tmp_path, 6, BUSY)[3:]]
    kept[0].append(script(tmp_path, f"number = 9\n{BUSY}\n{FINISH}", devices=2))
    kept[1].append(script(tmp_path, f"number = 8\n{BUSY}\n{FINISH}", devices=[1]))
    outcomes: list[str] = []

    def sweep(jobs: list[Job]) -> None:
        outcomes.extend(f"{now.kind} {now.text}" for now in local(3, "4", "7").run(iter(jobs), len(jobs)).values())

    threads = [threading.Thread(target=sweep, args=(jobs,)) for jobs in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["finished knn/top1 50.00"] * 8


def test_a_job_that_another_sweep_runs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sweeping.launchers.HELD", 0.2)
    (job,) = numbered(tmp_path, 1)
    job.folder.mkdir(parents=True)

    def other() -> None:
        with runs.claimed(job.folder):
            held.set()
            time.sleep(1)
            subprocess.run(job.command, check=True)

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert local(1).run(iter([job]), 1)[job].kind == "finished"
    thread.join()
    assert times(tmp_path) == [1]


def test_a_job_that_another_sweep_was_faster_with_and_gave_up_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both drew it; what was started here could not have the folder."""
    monkeypatch.setattr("src.sweeping.launchers.HELD", 0.2)
    code = f"""
import pathlib, sys, time
from src.running import runs
(pathlib.Path({str(tmp_path)!r}) / "started").touch()
while not (pathlib.Path({str(tmp_path)!r}) / "held").exists():
    time.sleep(0.01)
with runs.claimed(pathlib.Path(sys.argv[1])):
    pass
"""
    (job,) = numbered(tmp_path / "sweep", 1, code)
    job.folder.mkdir(parents=True)

    def other() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        with runs.claimed(job.folder):
            (tmp_path / "held").touch()
            while "is being written by" not in (job.folder / "log.txt").read_text():
                time.sleep(0.01)
            time.sleep(1)

    thread = threading.Thread(target=other)
    thread.start()
    assert local(1).run(iter([job]), 1)[job].kind == "finished"
    thread.join()


def test_a_job_is_not_of_those_that_srun_or_torchrun_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the sweep is."""
    for name in STARTED_BY:
        monkeypatch.setenv(name, "1")
    (job,) = numbered(tmp_path, 1, f"import os\nassert not {{*{STARTED_BY}}} & os.environ.keys()")
    assert local(1).run(iter([job]), 1)[job].kind == "finished"


def test_others_may_ask_whether_a_gpu_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.sweeping.launchers.LOCKS", tmp_path / "locks")
    before = os.umask(0o077)
    try:
        held = launchers._lock_gpus(["0"], 1)
    finally:
        os.umask(before)
    for file in held.values():
        os.close(file)
    assert (tmp_path / "locks" / "0").stat().st_mode & 0o777 == 0o644

    def refuse(*given: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    assert launchers._lock_gpus(["0"], 1) == {}, "it may be held"


SWEEP = """
import sys, pathlib
from tests.sweeping.test_launchers import local, script
place = pathlib.Path(sys.argv[1])
wait = "import os, time; open(sys_path + '/' + name, 'w').write(str(os.getpid())); time.sleep(600)"
jobs = [script(place / "s", f"sys_path, name = {str(place)!r}, {name!r}; {wait}") for name in ("a", "b")]
local(2).run(iter(jobs), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_ends_with_the_sweep(tmp_path: Path, number: int) -> None:
    code = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: exit(1))\n{SWEEP}"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    process.wait(30)
    for name in "ab":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)


def test_a_run_ends_with_a_sweep_that_is_killed(tmp_path: Path, cache: Path) -> None:
    """As by a signal: with a checkpoint, and in its own time."""
    few = ["dataset.limit=300", "protocol.metrics.knn.k=20", "input.size=16", "backbone=resnet18_slim", "logger=none"]
    few += ["callbacks.pictures=null", "trainer.max_epochs=500", "trainer.accelerator=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "src.train", "-m", "seed=1", *few, f"sweep_dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"ISIF_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
    )
    while not (found := list(tmp_path.glob("*/checkpoints/last.ckpt"))):
        time.sleep(0.05)
        assert process.poll() is None
    folder = found[0].parents[1]
    process.kill()
    process.wait(30)
    deadline = time.monotonic() + 60
    while runs.holder(folder):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.05)
    assert standing(folder).kind == "cut off"
    assert "Not finished; this goes on from the last checkpoint" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("accelerator", "there", "variable", "names"),
    [
        ("cpu", "gpu", None, []),
        ("auto", "cpu", None, []),
        ("auto", "gpu", None, ["0", "1", "2"]),
        ("gpu", "gpu", "4,GPU-7", ["4", "GPU-7"]),
    ],
)
def test_which_gpus_a_sweep_may_use(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, there: str, variable: str | None, names: list[str]
) -> None:
    monkeypatch.setattr("src.running.hardware.select_accelerator", lambda asked: there)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert launchers._visible_gpus(accelerator) == names


def test_a_job_that_asks_for_more_gpus_than_there_are_is_told_so_by_itself(tmp_path: Path) -> None:
    job = script(tmp_path, "raise SystemExit('error: this machine has 2')", devices=3)
    assert local(2, "0", "1").run(iter([job]), 1)[job].text == "this machine has 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.launcher.jobs=0"], "hydra.launcher.jobs=0: must be a whole number of at least 1 or null"),
        (
            ["hydra/launcher=slurm", "+hydra.launcher.others={qos:a}", "hydra.launcher.minutes=0"],
            "hydra.launcher.minutes=0: must be a whole number of",
        ),
        (["hydra/launcher=ray", "hydra.launcher.cpus=few"], "hydra.launcher.cpus=few: must be a number above 0"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: choose one of conf/"),
        (["hydra.launcher.job=2"], "Could not override 'hydra.launcher.job'"),
        (["method.temperature=0.1,abc"], "method.temperature=abc: must be a number above 0"),
        (["embedding_dim=16,32", "method.temprature=1"], "Could not override 'method.temprature'"),
        (["seed=1,2", "run_dir=runs/x"], "run_dir=runs/x: the runs of a multirun have folders of their own, in sweep_"),
        (["logger=none,csv"], "seed=1, trainer.accelerator=cpu, sweep_dir="),
        (["sweep_dir=/proc/none"], "[Errno 2] No such file or directory: '/proc/none'"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_starts(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("src.train", "-m", "seed=1,2", "trainer.accelerator=cpu", f"sweep_dir={tmp_path}/sweep", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_log_that_cannot_be_written_ends_the_sweep_and_what_runs(tmp_path: Path) -> None:
    """A full disk is none of a job's failures."""
    pid = tmp_path / "pid"
    waits = script(tmp_path, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    bad = script(tmp_path, FINISH)
    (bad.folder / "log.txt").mkdir(parents=True)
    started = time.monotonic()

    def draw() -> Iterator[Job]:
        yield waits
        yield bad

    with pytest.raises(IsADirectoryError):
        local(2).run(draw(), 2)
    assert time.monotonic() - started < 30
    assert not pid.exists() or not Path(f"/proc/{pid.read_text()}").exists()
