"""Signals that ask a process to end: at once, or where it can go on from without a loss."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

# Ctrl-C, what a scheduler ends a job with, and what Slurm sends before a time limit where it is asked to.
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ONE = 1  # seconds in which signals count as one: some send theirs to a process and once more to its group
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

_asked, _when = 0, 0.0
_instead: Callable[[int], object] | None = None


def listen() -> None:
    """From now on a signal ends this process with status 128 + its number, or does first what `instead` says.

    A signal that is ignored, as a shell has it for what runs in the background, stays so.
    """
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def instead(call: Callable[[int], object] | None) -> None:
    """Let the first signal call `call` with its number; a second still ends the process. None: the first does."""
    global _instead
    _instead = call


def asked() -> int:
    """The number of the first signal that came; 0: none did."""
    return _asked


def leave() -> None:
    """End as the signal that came would have; where it came to another rank, as SIGTERM would have."""
    raise SystemExit(128 + (_asked or signal.SIGTERM))


def say(line: str) -> None:
    """Write a line in the midst of anything, where `print` must not be called."""
    os.write(2, f"{line}\n".encode())


def end_with(parent: int, number: int) -> bool:
    """Have this process sent signal `number` when the one that started it dies; False where it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked, _when
    now, first = time.monotonic(), not _asked
    if first:
        _asked, _when = number, now
        if _instead:
            _instead(number)
            return
    elif now - _when < ONE:
        return
    else:
        signal.signal(number, signal.SIG_DFL)  # a third is not to be argued with
    raise SystemExit(128 + number)
