"""Fair times and peaks of memory: contenders in turn, several rounds, medians, as a table in Markdown.

What has a place to run at runs on `DEVICE`: the machine's GPU where it has one.
"""

import datetime
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from src.running.hardware import describe_hardware, describe_versions, select_accelerator, settle

ACCELERATOR = select_accelerator("auto", scores=True)
DEVICE = torch.device("cuda" if ACCELERATOR == "gpu" else "cpu")


def wait() -> None:
    """Until the device has done all that it was asked for."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each contender, the median of `rounds` rounds that call all in turn, one to warm up not counted.

    With 0 rounds the first counts: for what takes long and has nothing to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            wait()
            if number or not rounds:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextmanager
def apart(make: Callable[..., Callable[[], object]], *arguments: Any) -> Iterator[Callable[[], None]]:
    """A contender in a process of its own, so that no other's settings help or hinder it; a call waits for its end."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(there, make, *arguments))
    process.start()
    there.close()  # so that its end is noticed

    def call() -> None:
        here.send(True)
        here.recv()

    try:
        yield call
    finally:
        if process.is_alive():
            here.send(False)
        process.join()


def _serve(parent: Any, make: Callable[..., Callable[[], object]], *arguments: Any) -> None:
    torch.manual_seed(0)
    call = make(*arguments)
    while parent.recv():
        call()
        wait()
        parent.send(True)


def peak_memory(call: Callable[[], object]) -> float:
    """MiB by which a call raises the peak of this process, as Linux counts it; on a GPU, of what its tensors take."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20

    def read(which: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    before = read("VmRSS")
    call()
    return (read("VmHWM") - before) / 1024


def report(what: str, seconds: Mapping[str, float]) -> None:
    """One row: the first contender's time, then each other's and how many times as long it takes."""
    (_, mine), *others = seconds.items()
    cells = [f"{name} {_readable(time)} ({time / mine:.2f}x)" for name, time in others]
    print(f"| {what} | {_readable(mine)} | {'; '.join(cells)} |", flush=True)


def heading(title: str, columns: Sequence[str] = ("ours", "others (times as long as ours)")) -> None:
    """What is measured, when and on what, and the head of the table, whose first column has no name."""
    settle()
    facts, versions = describe_hardware(ACCELERATOR, 1), describe_versions()
    gpu = f"{facts['gpu']}; " if "gpu" in facts else ""
    print(
        f"# {title}\n\n{datetime.date.today()}; {gpu}{facts['cpu']}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores; Python {versions['python']}, torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}; medians.\n\n| | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|",
        flush=True,
    )


def _readable(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f} ms"
