"""A sweep of many jobs on many GPUs that fail, on paper: `python -m benchmarks.makespan`.

The loop is the real one, `JobLauncher.run`, with folders as real jobs leave them; its clock, its jobs and its GPUs are
simulated. The clock leaps from one look at which something has happened to the next such.

The model, each number an option: the lengths of the jobs are log-normal. GPUs fail by a Poisson process each, drawn for
ten times the lower bound; the job that is on one loses the epoch it is in, where notice was given nothing, and the GPU
is away for a while. Some jobs fail by a mistake after their first epoch, once. The sweep's own process is killed at
random moments of the time that the lower bound takes; its jobs end with a checkpoint. After a pause the same command is
called again, and so after a call that left failed jobs, until all are finished. All contenders have the same draws.
"""

import datetime
import io
import math
import statistics
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, fields
from functools import partial
from heapq import heappop, heappush
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.timing import medians, report
from src.running import runs
from src.running.checkpoints import path_of
from src.running.hardware import describe_hardware, describe_versions
from src.sweeping import launchers
from src.sweeping.jobs import FAILURE, Job, standing, under_way

HOUR = 3600
COLUMNS = (
    *("makespan, h", "useful GPU-hours, %", "computed twice, GPU-h", "of all work, %"),
    *("failures", "jobs begun again", "calls", "looks", "the loop's own time, s"),
)


@dataclass(frozen=True)
class Model:
    jobs: int = 1000
    gpus: int = 100
    median_hours: float = 1.0
    sigma: float = 0.6  # of the logarithm of a job's length
    epochs: int = 60
    gpu_hours_between_failures: float = 500.0
    noticed: float = 0.5  # the share of these that are told before
    hours_away: float = 0.5
    mistaken: float = 0.01
    kills: int = 3
    pause_minutes: float = 10.0
    startup_seconds: float = 30.0
    seeds: int = 5


class Killed(Exception):
    """The sweep's process is."""


class Simulation(launchers.JobLauncher):
    """A cluster, and the clock of all that is on it, in seconds; jobs resume or not, in batches or not, in an order."""

    def __init__(
        self, model: Model, seed: int, resumes: bool = True, batch: int | None = None, longest_first: bool = False
    ) -> None:
        super().__init__(model.gpus)
        self.model, self.resumes, self.batch, self.longest_first = model, resumes, batch or model.jobs, longest_first
        draw = np.random.default_rng(seed)
        self.lengths = HOUR * model.median_hours * draw.lognormal(0, model.sigma, model.jobs)
        self.mistaken = {int(number) for number in np.flatnonzero(draw.random(model.jobs) < model.mistaken)}
        self.bound = self.lengths.sum() / model.gpus
        self.kills = sorted(draw.uniform(0, self.bound, model.kills))
        window = 10 * self.bound
        expected = window * model.gpus / (HOUR * model.gpu_hours_between_failures)
        times = np.sort(draw.uniform(0, window, draw.poisson(expected)))
        self.breaks = [(float(at), int(draw.integers(model.gpus)), draw.random() < model.noticed) for at in times]
        self.free_from = [0.0] * model.gpus
        self.now = self.computed = self.loop_seconds = 0.0
        self.looks = self.failures = self.starts = self.calls = 0
        self.events = self.kills.copy()  # a heap

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Until the first look at which something has happened."""
        while self.events[0] <= self.now:
            heappop(self.events)
        self.now += seconds * math.ceil((self.events[0] - self.now) / seconds)
        self.looks += 1
        if self.kills and self.kills[0] <= self.now:
            raise Killed

    def start(self, jobs: Sequence[Job]) -> list["Attempt"]:
        free = [gpu for gpu, since in enumerate(self.free_from) if since <= self.now]
        return [Attempt(self, job, gpu) for job, gpu in zip(jobs, free, strict=False)]

    def sweep(self, folder: Path) -> None:
        """Call the command until all is finished."""
        order = np.argsort(-self.lengths, kind="stable") if self.longest_first else range(self.model.jobs)
        jobs = [Job(folder, (f"seed={number}",)) for number in order]
        with patch.object(launchers, "time", self), redirect_stdout(io.StringIO()):
            while not self._call(jobs):
                self.now += 60 * self.model.pause_minutes
                self.kills = [moment for moment in self.kills if moment > self.now]

    def _call(self, jobs: Sequence[Job]) -> bool:
        self.calls += 1
        begun = time.perf_counter()
        done = 0
        with suppress(Killed):
            for first in range(0, len(jobs), self.batch):
                batch = jobs[first : first + self.batch]
                done += sum(now.kind == "finished" for now in self.run(iter(batch), len(batch)).values())
        self.loop_seconds += time.perf_counter() - begun
        return done == len(jobs)

    def figures(self) -> list[float]:
        """Of `COLUMNS`."""
        work = self.lengths.sum()
        twice = max(0.0, self.computed - work)  # of no loss a rounding is left
        counts = [self.failures, self.starts - self.model.jobs, self.calls, self.looks, self.loop_seconds]
        return [self.now / HOUR, 100 * self.bound / self.now, twice / HOUR, 100 * twice / work, *counts]


class Attempt:
    """A handle: a job on a GPU, from its start to whatever ends it."""

    def __init__(self, cluster: Simulation, job: Job, gpu: int) -> None:
        self.cluster, self.folder, self.gpu = cluster, job.folder, gpu
        self.number = int(job.overrides[0].partition("=")[2])
        self.length = cluster.lengths[self.number]
        self.epoch = self.length / cluster.model.epochs
        self.checkpoint = path_of(job.folder, "last")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        (job.folder / FAILURE).unlink(missing_ok=True)
        self.claim = ExitStack()
        self.claim.enter_context(runs.claimed(job.folder))
        self.kept = float(self.checkpoint.read_text()) if self.checkpoint.exists() else 0.0
        self.begun = cluster.now + cluster.model.startup_seconds
        self.status: int | None = None
        self.whole = False  # whether it ends with a checkpoint of the moment, not of the last epoch
        self.ends, self.ending, away = self.begun + self.length - self.kept, 0, 0.0
        if self.number in cluster.mistaken and self.begun + self.epoch - self.kept < self.ends:
            self.ends, self.ending = max(self.begun, self.begun + self.epoch - self.kept), 1
        for at, where, noticed in cluster.breaks:
            if where == gpu and cluster.now < at < self.ends:
                self.ends, self.ending, self.whole, away = at, -9, noticed, HOUR * cluster.model.hours_away
                break
        cluster.starts += 1
        cluster.free_from[gpu] = self.ends + away
        for event in (self.ends, self.ends + away):
            heappush(cluster.events, event)

    def poll(self) -> int | None:
        if self.status is None and self.cluster.now >= self.ends:
            self._end()
        return self.status

    def terminate(self) -> None:
        if self.poll() is None:
            self.ends, self.ending, self.whole = self.cluster.now, -15, True
            self.cluster.free_from[self.gpu] = self.cluster.now

    kill = terminate

    def _end(self) -> None:
        """Leave what a real job leaves."""
        worked = max(0.0, self.ends - self.begun)
        reached = self.kept + worked
        self.cluster.computed += worked
        if self.ending == 0:
            runs.write_results(self.folder, {"monitor": "score", "last": {"epoch": 1, "score": 0.0}})
        elif self.cluster.resumes:
            last_epoch = self.epoch * math.floor(reached / self.epoch + 1e-9)
            self.checkpoint.write_text(str(reached if self.whole else max(self.kept, last_epoch)))
        if self.ending == 1:
            self.cluster.mistaken.remove(self.number)
        self.cluster.failures += self.ending in (1, -9)
        self.claim.close()
        self.status = self.ending


def simulate(model: Model, how: dict[str, Any], seed: int) -> Simulation:
    simulation = Simulation(model, seed, **how)
    with tempfile.TemporaryDirectory() as place:
        simulation.sweep(Path(place))
    return simulation


def row(name: str, columns: Iterable[Sequence[float]]) -> None:
    """A line of the table: of each column its values, one a seed."""
    deviations = ((values, statistics.stdev(values) if len(values) > 1 else 0.0) for values in columns)
    cells = [f"{statistics.mean(values):,.2f} ± {deviation:,.2f}" for values, deviation in deviations]
    print(f"| {name} | {' | '.join(cells)} {'|' * (len(COLUMNS) + 1 - len(cells))}", flush=True)


def time_looks(count: int) -> dict[str, float]:
    """Seconds of a look at so many folders of jobs that run and have said how far they are."""
    progress = {"epoch": 1, "epochs": 60, "monitor": "score", "scores": [[1, 50.0]], "seconds_left": 60.0}
    with tempfile.TemporaryDirectory() as place, ExitStack() as claims:
        folders = [Path(place) / str(number) for number in range(count)]
        for folder in folders:
            folder.mkdir()
            claims.enter_context(runs.claimed(folder))
            runs.write_progress(folder, progress)
        return medians(
            {
                "ours": lambda: [under_way(folder) for folder in folders],
                "asking for their holders too": lambda: [standing(folder) for folder in folders],
            },
            10,
        )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for option in fields(Model):
        parser.add_argument(f"--{option.name}", type=type(option.default), default=option.default)
    model = Model(**vars(parser.parse_args()))
    contenders: dict[str, dict[str, Any]] = {
        "ours": {},
        "what fails or is cut off starts afresh": {"resumes": False},
        "batches of as many as there are GPUs, as Hydra's `max_batch_size`": {"batch": model.gpus},
        "longest first, were the lengths known": {"longest_first": True},
    }
    facts, versions = describe_hardware("cpu", 1), describe_versions()
    print(
        f"# A sweep of {model.jobs:,} jobs on {model.gpus} GPUs that fail, simulated\n\n{datetime.date.today()}; "
        f"{facts['cpu']}, {facts['cores']} cores; Python {versions['python']}, hydra-core {versions['hydra-core']}, "
        f"numpy {versions['numpy']}; {model.seeds} seeds from 0, mean ± standard deviation.\n\n`{model}`\n\n"
        f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}"
    )
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = {
            name: list(pool.map(partial(simulate, model, how), range(model.seeds))) for name, how in contenders.items()
        }
    row("lower bound: all work / GPUs", [[one.bound / HOUR for one in done["ours"]]])
    row("lower bound: the longest job", [[one.lengths.max() / HOUR for one in done["ours"]]])
    for name, simulations in done.items():
        row(name, zip(*(one.figures() for one in simulations), strict=True))
    print("\n| | ours | others (times as long as ours) |\n|---|---|---|")
    report(f"a look at {model.gpus} jobs that run", time_looks(model.gpus))


if __name__ == "__main__":
    main()
