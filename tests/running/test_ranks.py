"""Ranks end together: with one that fails, with one that is killed, and with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.running.ranks import spawn
from tests.conftest import ROOT


def _work(folder: Path, what: str) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    (folder / str(rank)).write_text(str(os.getpid()))
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    if rank == 1 and what == "fail":
        raise ValueError("no such thing")
    if rank == 1 and what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what != "end":
        time.sleep(120)


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
        spawn(_work, 2, tmp_path, what)
    assert time.monotonic() - started < 60
    assert len(ranks_of(tmp_path)) == 2
    assert not any(process.exists() for process in ranks_of(tmp_path))


def test_all_end(tmp_path: Path) -> None:
    spawn(_work, 2, tmp_path, "end")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_do_not_outlive_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "from pathlib import Path\nfrom src.running import cli\nfrom src.running.ranks import spawn\n"
        "from tests.running.test_ranks import _work\n"
        f"if __name__ == '__main__': cli.run(lambda: spawn(_work, 2, Path({str(tmp_path / 'ranks')!r}), 'stay'))\n"
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
