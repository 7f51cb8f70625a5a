"""Fair times: contenders in turn, many rounds in one process, medians."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from src.hardware import describe_hardware, describe_versions


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each contender, the median of `rounds` rounds that call all in turn, one to warm up not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(what: str, seconds: Mapping[str, float]) -> None:
    """One row: the first contender's time, then each other's and how many times as long it takes."""
    (_, mine), *others = seconds.items()
    cells = [f"{name} {1e3 * time:,.0f} ms ({time / mine:.2f}x)" for name, time in others]
    print(f"{what:40} ours {1e3 * mine:,.0f} ms | " + " | ".join(cells), flush=True)


def heading(title: str) -> None:
    """What is timed, and on what."""
    facts, versions = describe_hardware("cpu", 1), describe_versions()
    print(
        f"{title}; {facts['cpu']}, {torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    )
