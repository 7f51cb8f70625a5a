"""What a rank does in the tests of how ranks end; apart from them, so that a rank imports no more."""

import os
import signal
import time
from pathlib import Path


def work(folder: Path, what: str) -> None:
    """Write this rank's process into `folder`, and once both have: fail, die, end, or stay."""
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
