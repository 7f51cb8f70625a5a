"""Slurm's launcher: on this machine by submitit's own, without Slurm; and what Slurm itself would be asked, by faked
commands of it that write down how they are called."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.sweeping.jobs import LOG, Job, Standing
from src.sweeping.slurm import NOTE, Slurm, Task
from tests.conftest import ROOT
from tests.sweeping.test_launchers import FINISH, Script, numbered, script

submitit = pytest.importorskip("submitit", reason="pip install '.[slurm]'")

# Ends with a checkpoint where it is asked to, and goes on from it.
PATIENT = f"""
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def leave(number, frame):
    (folder / "checkpoint").write_text("x")
    sys.exit(143)
if not (folder / "checkpoint").exists():
    signal.signal(signal.SIGTERM, leave)
    (folder / "pids").write_text(f"{{os.getppid()}} {{os.getpid()}}")
    time.sleep(60)
    sys.exit("error: nobody came")
{FINISH}
"""


def slurm(jobs: int | None = 2, cluster: str = "local", **changes: Any) -> Slurm:
    options = yaml.safe_load((ROOT / "conf/hydra/launcher/slurm.yaml").read_text())
    del options["_target_"]
    return Slurm(**options | {"jobs": jobs, "cluster": cluster} | changes)


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def pids(job: Job) -> list[int]:
    """Of submitit's task and of the job's own process."""
    path = job.folder / "pids"
    return list(map(int, until(lambda: path.exists() and path.read_text()).split()))


def lives(pid: int) -> bool:
    try:
        return ") Z " not in (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return False


def test_a_failure_leaves_the_others_alone_and_no_more_run_at_once_than_asked_for(tmp_path: Path) -> None:
    for name in ("now", "ever"):
        (tmp_path / name).mkdir()
    code = f"import os, time\nos.chdir('{tmp_path}')\n"
    code += "for place in ('now', 'ever'): open('%s/%d' % (place, number), 'w').close()\n"
    code += "while len(os.listdir('ever')) < 2: time.sleep(0.05)\n"  # the first waits for the second
    code += "for _ in range(2): open('most', 'a').write('%d ' % len(os.listdir('now'))); time.sleep(1)\n"
    code += "os.remove('now/%d' % number)"
    bad = script(tmp_path / "sweep", "raise SystemExit('error: no luck')")
    jobs = [*numbered(tmp_path / "sweep", 3, code), bad]
    ended = slurm(2).run(iter(jobs), 4)
    assert [ended[job].kind for job in jobs] == ["finished"] * 3 + ["failed"]
    assert ended[bad].text == "no luck"
    assert max(map(int, (tmp_path / "most").read_text().split())) == 2


def test_a_preempted_job_writes_its_checkpoint_returns_to_the_queue_and_goes_on(tmp_path: Path) -> None:
    job = script(tmp_path / "sweep", PATIENT)
    ended: dict[Job, Standing] = {}
    sweep = threading.Thread(target=lambda: ended.update(slurm().run(iter([job]), 1)), daemon=True)
    sweep.start()
    os.kill(pids(job)[0], signal.SIGUSR2)
    sweep.join(120)
    assert not sweep.is_alive()
    assert ended[job].kind == "finished", (job.folder / LOG).read_text()
    assert (job.folder / "checkpoint").exists()
    assert (job.folder / LOG).read_text().count("$ ") == 2


@pytest.mark.parametrize("by_us", [True, False])
def test_a_job_that_is_ended_writes_its_checkpoint_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_us: bool
) -> None:
    if not by_us:  # or submitit waits so many seconds for a result
        monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 0)
    job = script(tmp_path / "sweep", PATIENT)
    (handle,) = slurm().start([job])
    task, child = pids(job)
    assert handle.poll() is None
    if by_us:
        handle.terminate()
    else:
        os.kill(task, signal.SIGTERM)
    began = time.monotonic()
    until(lambda: not (lives(task) or lives(child)))
    until(lambda: handle.poll() is not None)
    assert not by_us or time.monotonic() - began < 10, "there is no result to wait for"
    assert handle.poll() != 0
    assert (job.folder / "checkpoint").exists()


def test_a_job_of_two_devices_is_one_process_where_there_is_no_slurm(tmp_path: Path) -> None:
    (job,) = numbered(tmp_path / "sweep", 1, devices=2)
    assert slurm().run(iter([job]), 1)[job].kind == "finished"
    assert (job.folder / "times").read_text() == "x"


SAY = """#!{python}
import os, pathlib, sys
place, name = pathlib.Path(sys.argv[0]).parent, pathlib.Path(sys.argv[0]).name
with (place / "calls").open("a") as calls:
    calls.write(" ".join([name, *sys.argv[1:]]) + "\\n")
if name == "sbatch":
    if (place / "refusal").exists():
        sys.exit((place / "refusal").read_text())
    number = len(list(place.glob("batch-*"))) + 40
    (place / f"batch-{{number}}").write_text(open(sys.argv[1]).read())
    print("Submitted batch job", number)
if name == "squeue":
    told = (place / "queued").read_text().splitlines() if (place / "queued").exists() else []
    print(told[0] if told else "")
    (place / "queued").write_text("\\n".join(told[1:] or told))
if name == "sacct":
    print("JobID|State|NodeList")
    print((place / "states").read_text() if (place / "states").exists() else "")
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands like Slurm's: `batch-*` is what was submitted, `calls` how they were called."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("srun", "sbatch", "sacct", "squeue", "scancel"):
        (place / name).write_text(SAY.format(python=sys.executable))
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setattr(submitit.SlurmJob, "watcher", type(submitit.SlurmJob.watcher)(delay_s=600))
    return place


def batch(queue: Path, number: int) -> dict[str, str]:
    """What sbatch was told."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (queue / f"batch-{number}").read_text(), re.MULTILINE))


def sized(sweep: Path, number: int, accelerator: str = "gpu", **trainer: Any) -> Script:
    return Script(sweep, (f"number = {number}",), trainer={"accelerator": accelerator, "num_nodes": 1} | trainer)


def test_what_slurm_is_asked_for(tmp_path: Path, queue: Path) -> None:
    sweep = tmp_path / "some sweep"
    alike = [sized(sweep, number, devices=2, num_nodes=3) for number in range(3)]
    all_of_a_node, one = sized(sweep, 3, devices=-1), sized(sweep, 4, devices=1, accelerator="cpu")
    changes = {"minutes": 90, "warning": 33, "gpus_per_node": 8, "mem_gb": 12.5, "setup": ["module load x"]}
    launcher = slurm(2, "slurm", partition="big", others={"constraint": "a100", "exclusive": True}, **changes)
    handles = launcher.start([alike[0], one, *alike[1:], all_of_a_node])
    assert [(handle.known.job_id) for handle in handles] == ["40_0", "41", "40_1", "40_2", "42"]  # type: ignore[attr-defined]
    several = batch(queue, 40)
    asked = {
        "array": "0-2%2",
        "nodes": "3",
        "ntasks-per-node": "2",
        "gpus-per-node": "2",
        "cpus-per-task": "4",
        "time": "90",
        "signal": "USR2@33",
        "mem": "12800MB",
        "partition": "big",
        "constraint": "a100",
        "exclusive": "",
        "job-name": "'some sweep'",
    }
    assert {key: several.get(key) for key in asked} == asked
    assert not {"account", "qos"} & several.keys()
    assert re.search(r"^module load x$", (queue / "batch-40").read_text(), re.MULTILINE)
    assert {key: batch(queue, 41)[key] for key in ("nodes", "ntasks-per-node", "gpus-per-node")} == {
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "0",
    }
    assert batch(queue, 42)["gpus-per-node"] == batch(queue, 42)["ntasks-per-node"] == "8"
    submitted = submitit.SlurmJob(sweep / "slurm", "40_2").submission()
    assert submitted.function.job == alike[2]
    assert submitted._timeout_countdown == 100


@pytest.mark.parametrize(
    ("state", "queued", "there"),
    [
        ("PENDING", "", True),
        ("RUNNING", "", True),
        ("REQUEUED", "", True),
        ("PREEMPTED", "PENDING", True),
        ("PREEMPTED", "", False),
        ("CANCELLED", "", False),
        (None, "", False),
    ],
)
def test_what_an_earlier_call_left_in_the_queue_is_not_submitted_again(
    tmp_path: Path, queue: Path, state: str | None, queued: str, there: bool
) -> None:
    job = sized(tmp_path / "sweep", 0, devices=1)
    slurm(cluster="slurm").start([job])
    assert (job.folder / NOTE).read_text() == "40"
    (queue / "queued").write_text(queued)
    if state:
        (queue / "states").write_text(f"40|{state}|node1")
    (handle,) = slurm(cluster="slurm").start([job])
    assert len(list(queue.glob("batch-*"))) == (1 if there else 2)
    assert (job.folder / NOTE).read_text() == ("40" if there else "41")
    if there:
        assert handle.poll() is None
        handle.terminate()
        assert "scancel 40\n" in (queue / "calls").read_text()
        (queue / "states").write_text("40|CANCELLED by 0|node1")
        began = time.monotonic()
        assert handle.poll() == 1
        assert time.monotonic() - began < 5, "Slurm is asked at once, and there is no result to wait for"


def test_a_job_that_was_preempted_for_good_has_failed(tmp_path: Path, queue: Path) -> None:
    """Where Slurm cancels what it preempts: submitit would wait for it for ever."""
    job = sized(tmp_path / "sweep", 0, devices=1)
    handle: Any
    (handle,) = slurm(cluster="slurm").start([job])
    (queue / "states").write_text("40|PREEMPTED|node1")
    handle.known.get_info("force")
    (queue / "queued").write_text("PENDING")
    assert handle.poll() is None, "it goes on"
    (queue / "queued").write_text("")
    assert handle.poll() == 1
    assert "Slurm's job 40: it was preempted, and is in the queue no more" in (job.folder / LOG).read_text()


def test_a_preempted_job_stays_until_slurm_puts_it_back(
    tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its grace time: one that ends by itself counts as failed."""
    monkeypatch.setattr("src.sweeping.slurm.LOOK_EVERY", 0.05)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    (queue / "queued").write_text("RUNNING\nRUNNING\nCOMPLETING")
    job = script(tmp_path / "sweep", PATIENT)
    before = signal.getsignal(signal.SIGTERM)

    def preempt() -> None:
        pids(job)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt, daemon=True).start()
    try:
        with pytest.raises(SystemExit) as left:
            Task(job)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    assert (job.folder / "checkpoint").exists()
    assert (queue / "calls").read_text().count("squeue -h -j 40 -o %T\n") == 3


def test_all_devices_of_a_node_of_unknown_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^trainer.devices=-1: say with hydra.launcher.gpus_per_node how many GPUs"):
        slurm().start([sized(tmp_path, 0, devices=-1)])


def test_no_slurm_and_its_refusal_are_told(tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sized(tmp_path / "sweep", 0, devices=1)
    (queue / "refusal").write_text("sbatch: error: invalid partition specified: big")
    with pytest.raises(OSError, match=r"hydra/launcher=slurm: .*invalid partition specified: big"):
        slurm(cluster="slurm").start([job])
    (queue / "srun").unlink()
    monkeypatch.setenv("PATH", str(queue))
    with pytest.raises(OSError, match='hydra/launcher=slurm: Could not detect "srun"'):
        slurm(cluster="slurm").start([job])


def test_nothing_is_submitted_whose_folder_cannot_be_written(tmp_path: Path, queue: Path) -> None:
    jobs = [sized(tmp_path / "sweep", number, devices=1) for number in range(2)]
    (jobs[1].folder / NOTE).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        slurm(cluster="slurm").start(jobs)
    assert not list(queue.glob("batch-*"))


def test_a_log_that_cannot_be_written_fails_its_job_alone(tmp_path: Path) -> None:
    bad, good = numbered(tmp_path / "sweep", 2)
    (bad.folder / LOG).mkdir(parents=True)
    ended = slurm().run(iter([bad, good]), 2)
    assert (ended[bad].kind, ended[good].kind) == ("failed", "finished")
    assert LOG in ended[bad].text
