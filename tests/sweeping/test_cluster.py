"""Ray's launcher on a cluster of two nodes, both of this machine."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.sweeping.cluster import Ray
from src.sweeping.jobs import LOG, Job, Standing
from tests.sweeping.test_launchers import FINISH, Script, script
from tests.sweeping.test_slurm import lives, until

ray = pytest.importorskip("ray", reason="pip install '.[ray]'")

# Says where it is, waits for others to do so, and stays, where it is not there again.
MEET = f"""
import os, pathlib, signal, sys, time
from src.running import signals
folder = pathlib.Path(sys.argv[1])
def leave(number, frame):
    (folder / "ended").write_text(str(number))
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
signals.end_with(int(os.environ["ISIF_PARENT"]), signal.SIGTERM)
number = number
with (folder / "at").open("a") as at:
    at.write(f"{{os.environ['NODE']}} {{os.getpid()}}\\n")
deadline = time.monotonic() + 30
while len(list(folder.parent.glob("*/at"))) < others and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(stay if (folder / "at").read_text().count("\\n") == 1 else 0)
{FINISH}
"""


def meeting(sweep: Path, number: int, others: int = 1, stay: float = 0, **trainer: Any) -> Script:
    code = f"number, others, stay = {number}, {others}, {stay}\n{MEET}"
    return Script(sweep, (code,), trainer={"devices": 1, "num_nodes": 1, "accelerator": "auto"} | trainer)


def at(job: Job) -> list[list[str]]:
    path = job.folder / "at"
    return [line.split() for line in until(lambda: path.exists() and path.read_text()).splitlines()]


def launcher(jobs: int | None = None, cpus: float = 1, gpus: float | None = None) -> Ray:
    made = Ray(jobs, "auto", cpus, gpus)
    made.look_every = 0.1
    return made


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Any]]:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    added = {}
    for name, gpus in (("first", 0), ("second", 1)):
        added[name] = cluster.add_node(num_cpus=1, num_gpus=gpus, env_vars={"NODE": name}, include_dashboard=False)
    ray.init(cluster.address, log_to_driver=False)
    yield {"cluster": cluster, **added}
    ray.shutdown()
    cluster.shutdown()


def test_jobs_run_on_both_nodes_and_a_failure_leaves_them_alone(tmp_path: Path, nodes: dict[str, Any]) -> None:
    jobs = [meeting(tmp_path, number, others=2, accelerator="cpu") for number in range(2)]
    bad = script(tmp_path, "raise SystemExit('error: no luck')")
    ended = launcher().run(iter([*jobs, bad]), 3)
    assert [ended[job].kind for job in [*jobs, bad]] == ["finished", "finished", "failed"]
    assert ended[bad].text == "no luck"
    assert sorted(at(job)[0][0] for job in jobs) == ["first", "second"]


def test_a_job_whose_node_is_lost_goes_on_on_another(tmp_path: Path, nodes: dict[str, Any]) -> None:
    lost = nodes["cluster"].add_node(num_cpus=2, env_vars={"NODE": "lost"})
    job = meeting(tmp_path, 0, stay=60, accelerator="cpu")
    ended: dict[Job, Standing] = {}
    sweep = threading.Thread(target=lambda: ended.update(launcher(cpus=2).run(iter([job]), 1)), daemon=True)
    sweep.start()
    assert [name for name, _ in at(job)] == ["lost"]
    nodes["cluster"].add_node(num_cpus=2, env_vars={"NODE": "third"})
    nodes["cluster"].remove_node(lost, allow_graceful=False)
    sweep.join(60)
    assert not sweep.is_alive()
    assert ended[job].kind == "finished"
    assert [name for name, _ in at(job)] == ["lost", "third"]
    assert (job.folder / "times").read_text() == "x"


def test_a_job_that_is_ended_gets_to_write_its_checkpoint(tmp_path: Path, nodes: dict[str, Any]) -> None:
    (handle,) = launcher().start([job := meeting(tmp_path, 0, stay=60)])
    ((_, pid),) = at(job)
    assert handle.poll() is None
    handle.terminate()
    until(lambda: handle.poll() is not None)
    assert handle.poll() != 0
    assert (job.folder / "ended").read_text() == str(int(signal.SIGTERM))
    assert not lives(int(pid))


def test_two_jobs_share_a_gpu(tmp_path: Path, nodes: dict[str, Any]) -> None:
    jobs = [meeting(tmp_path, number, others=2) for number in range(2)]
    ended = launcher(cpus=0.5, gpus=0.5).run(iter(jobs), 2)
    assert {ended[job].kind for job in jobs} == {"finished"}
    assert [at(job)[0][0] for job in jobs] == ["second", "second"]


@pytest.mark.parametrize(
    ("cpus", "gpus", "devices"), [(1, None, 2), (1, 1.5, 1), (100, 0, 1)], ids=["devices", "gpus", "cpus"]
)
def test_more_than_any_node_has(
    tmp_path: Path, nodes: dict[str, Any], cpus: float, gpus: float | None, devices: int
) -> None:
    with pytest.raises(ValueError, match=r": no node of the cluster has [\d.]+ GPUs and \d+ CPUs: see hydra"):
        list(launcher(cpus=cpus, gpus=gpus).start([meeting(tmp_path, 0, devices=devices)]))


def test_what_cannot_be_started_fails_alone(tmp_path: Path, nodes: dict[str, Any]) -> None:
    job = meeting(tmp_path, 0)
    (job.folder / LOG).mkdir(parents=True)
    ended = launcher().run(iter([job]), 1)
    assert ended[job].kind == "failed"
    assert "Is a directory" in ended[job].text
