"""Ranks end together: with one that fails, with one that is killed, and with the process that started them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.running.ranks import find_cluster, spawn
from tests.chaos import TIMES
from tests.conftest import ROOT, Run
from tests.running.working import work


def ranks_of(folder: Path) -> list[Path]:
    return [Path("/proc") / path.read_text() for path in folder.iterdir()]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("fail", ValueError, r"^no such thing \(rank 1 of 2\)$"),
        ("die", ChildProcessError, r"^rank 1 of 2 was killed by SIGKILL; the others were ended$"),
    ],
)
def test_one_that_ends_takes_the_others_along(tmp_path: Path, what: str, kind: type[Exception], message: str) -> None:
    started = time.monotonic()
    with pytest.raises(kind, match=message):
        spawn(work, 2, tmp_path, what)
    assert time.monotonic() - started < 60
    assert len(ranks_of(tmp_path)) == 2
    assert not any(process.exists() for process in ranks_of(tmp_path))


def test_all_end(tmp_path: Path) -> None:
    spawn(work, 2, tmp_path, "end")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_do_not_outlive_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "from pathlib import Path\nfrom src.running import cli\nfrom src.running.ranks import spawn\n"
        "from tests.running.working import work\n"
        f"if __name__ == '__main__': cli.run(lambda: spawn(work, 2, Path({str(tmp_path / 'ranks')!r}), 'stay'))\n"
    )
    (tmp_path / "ranks").mkdir()
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    parent = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while len(ranks_of(tmp_path / "ranks")) < 2 and parent.poll() is None:
        time.sleep(0.05)
    ranks = ranks_of(tmp_path / "ranks")
    time.sleep(0.2)
    parent.send_signal(number)
    assert parent.wait(30) == (143 if number == signal.SIGTERM else -9)
    deadline = time.monotonic() + 20
    while any(process.exists() for process in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(process.exists() for process in ranks)


def test_two_nodes_give_the_numbers_of_one(run: Run, tmp_path: Path) -> None:
    """Processes that torchrun started, one a node, and that srun did, as its variables say; of one thread each."""
    options = ["dataset.limit=200", "dataset.batch_size=16", "backbone=resnet18_slim", "protocol.metrics.knn.k=20"]
    options += ["input.size=16", "trainer=ddp", "trainer.accelerator=cpu", "logger=none", "callbacks.pictures=null"]
    options += ["trainer.max_epochs=1"]
    one = run("src.train", *options, "trainer.devices=2", f"run_dir={tmp_path / 'one'}", OMP_NUM_THREADS="1")
    assert one.returncode == 0, one.stderr
    several = [*options, "trainer.devices=1", "trainer.num_nodes=2"]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port())}
    torchrun = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    torchrun += [f"--master_port={free_port()}"]

    def start(launcher: str, node: str) -> subprocess.CompletedProcess[str]:
        settings = [*several, f"run_dir={tmp_path / launcher}"]
        if launcher == "torchrun":
            told = [*torchrun, f"--node_rank={node}", "-m", "src.train", *settings]
            return run("torch.distributed.run", *told, OMP_NUM_THREADS="1")
        numbers = {"SLURM_PROCID": node, "SLURM_NODEID": node}
        return run("src.train", *settings, OMP_NUM_THREADS="1", **slurm, **numbers)

    for name in ("torchrun", "srun"):
        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(start, (name, name), ("0", "1")):
                assert done.returncode == 0, done.stderr
        assert history(tmp_path / name) == history(tmp_path / "one")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def history(folder: Path) -> list[dict[str, float]]:
    rows = json.loads((folder / "results.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


SRUN = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "4", "GROUP_RANK": "0", "LOCAL_RANK": "0"}
TORCHRUN |= {"LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "name"), [(SRUN, "SLURM"), (TORCHRUN, "TorchElastic"), (SRUN | TORCHRUN, "TorchElastic")]
)
def test_whose_processes_these_are(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str) -> None:
    assert find_cluster(2, 1) is None
    with pytest.raises(ValueError, match=r"^trainer.num_nodes=2: start its processes by srun or torchrun"):
        find_cluster(2, 2)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert type(find_cluster(2, 2)).__name__ == f"{name}Environment"
    with pytest.raises(ValueError, match=rf"^trainer.devices=2 on each of trainer.num_nodes=3 are 6 .* but {name} sta"):
        find_cluster(2, 3)


def test_a_batch_script_and_srun_of_one_process_are_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert find_cluster(2, 1) is None
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_cluster(2, 1) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["trainer.devices=2", "trainer.num_nodes=2"], SRUN, "run_dir: give all processes of the run the same one"),
        (["trainer.devices=2", "run_dir=RUN"], SRUN, "trainer.devices=2 on each of trainer.num_nodes=1 are 2 "),
        (["trainer.num_nodes=2", "run_dir=RUN"], {}, "trainer.num_nodes=2: start its processes by srun or torch"),
    ],
)
def test_a_run_of_several_nodes_that_cannot_be(
    run: Run, tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    arguments = [argument.replace("RUN", str(tmp_path / "run")) for argument in arguments]
    done = run("src.train", "trainer=ddp", "trainer.accelerator=cpu", *arguments, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
