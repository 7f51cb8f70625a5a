"""Where and when the jobs of a sweep run: Hydra's launchers; `hydra/launcher=local` here, `slurm` and `ray` beside.

A job is the command that a person would type (`src.sweeping.jobs`), so a launcher only starts processes, looks after
them, and ends them; what differs between the kinds is `start`.
"""

import fcntl
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from src import settings
from src.hints import Count
from src.running.cli import settled
from src.running.ranks import STARTED_BY
from src.sweeping.board import Board
from src.sweeping.jobs import Job, Standing, make_jobs, note_failure, standing, start, under_way

PATIENCE = 60  # seconds that jobs have to write their checkpoints when the sweep ends before them
LOCKS = Path("/tmp/isif-gpus")  # the same for all users of a machine, whatever their TMPDIR
HELD = 5  # seconds between two looks at a job that another sweep runs


class Handle(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """The status that it ended with, negative for a signal; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end; its checkpoint stays."""

    def kill(self) -> None:
        """End it."""


class JobLauncher(Launcher):
    """Runs jobs that are not finished, as many at once as there is room for; one that fails leaves the others alone.

    Args:
        jobs: the most that run at once; None: as many as there is room for.
    """

    look_every = 0.5  # seconds between two looks at all that runs

    def __init__(self, jobs: Count | None) -> None:
        self.most: float = jobs or math.inf

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        settings.check_options("hydra.launcher", settled(config.hydra.launcher))

    def start(self, jobs: Sequence[Job]) -> Iterable[Handle]:
        """Start the first of `jobs`, in order, as many as there is room for now."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Hydra's interface, for sweepers of others: run a batch, and return its scores in order."""
        jobs = make_jobs(self.config, self.loader, job_overrides)
        ended = self.run(iter(jobs), len(jobs))
        return [_job_return(job, ended[job]) for job in jobs]

    def run(
        self,
        jobs: Iterator[Job],
        total: int,
        ended: Callable[[Job, Standing], object] = lambda job, now: None,
        look: Callable[[Job, Standing], object] | None = None,
    ) -> dict[Job, Standing]:
        """Run all of `jobs`, drawn as there is room, so that they may depend on how those before ended.

        Args:
            jobs: of one sweep.
            total: how many there are.
            ended: told of each job that is finished, also of one that was before, or has failed.
            look: told of each that runs, now and again.

        Returns:
            How each stands in the end, finished or failed.
        """
        done: dict[Job, Standing] = {}
        before: dict[Job, Standing] = {}  # of those that were started, and to be started
        running: dict[Job, Handle] = {}
        waiting: deque[Job] = deque()
        elsewhere: list[Job] = []  # run by another sweep, or by what an ended one left behind
        looked = time.monotonic()
        with Board(total) as board, _ended_together(running, self.look_every / 10):

            def sort(job: Job) -> None:
                """Put a job that is not running here where it belongs."""
                now = standing(job.folder)
                if now.kind == "running":
                    before.pop(job, None)  # what was started here has left it to that other one
                    elsewhere.append(job)
                elif now.kind == "finished" or job in before:
                    done[job] = now
                    board.ended(job, now, before=job not in before)
                    ended(job, now)
                else:
                    before[job] = now
                    waiting.append(job)

            while True:
                if elsewhere and time.monotonic() - looked > HELD:
                    looked, again = time.monotonic(), elsewhere.copy()
                    elsewhere.clear()
                    for job in again:
                        sort(job)
                while len(running) + len(waiting) < self.most and (upcoming := next(jobs, None)):
                    sort(upcoming)
                for handle in self.start(tuple(waiting)) if waiting else ():
                    job = waiting.popleft()
                    running[job] = handle
                    board.started(job, before[job].kind)
                if not (running or waiting or elsewhere):
                    return done
                time.sleep(self.look_every)
                for job, handle in tuple(running.items()):
                    if (status := handle.poll()) is not None:
                        del running[job]
                        note_failure(job, status)
                        sort(job)
                    elif look or board.watched:
                        now = under_way(job.folder)
                        board.look(job, now)
                        if look:
                            look(job, now)


class Local(JobLauncher):
    """A process a job on this machine, which holds its GPUs until it ends; on a CPU its cores are divided.

    GPUs are held by locks that the job's process inherits, so that several sweeps share a machine, also where one dies.

    Args:
        jobs: as in `JobLauncher`; None: as many as there are GPUs, on a CPU one.
    """

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.gpus = _visible_gpus(config.trainer.accelerator)
        self.most = min(self.most, len(self.gpus) or (1 if self.most == math.inf else self.most))

    def start(self, jobs: Sequence[Job]) -> Iterator[Handle]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for job in jobs:
            environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, int(cores / self.most))))}
            locks: dict[str, int] = {}
            asked, wanted = job.trainer["devices"], job.devices(len(self.gpus))
            # One that asks for more than there are is told so by itself.
            if 0 < wanted <= len(self.gpus) and job.trainer["accelerator"] != "cpu":
                named = isinstance(asked, list) and max(asked) < len(self.gpus)
                locks = _lock_gpus([self.gpus[number] for number in asked] if named else self.gpus, wanted)
                if not locks:
                    return
                if not named:
                    environment["CUDA_VISIBLE_DEVICES"] = ",".join(locks)
            process = start(job, environment, locks.values(), without=STARTED_BY)
            for lock in locks.values():
                os.close(lock)  # the job's process has it now
            yield process


def _visible_gpus(accelerator: str) -> list[str]:
    """The names that CUDA_VISIBLE_DEVICES has, or may have, for the GPUs that we may use; none on another accelerator.

    Raises:
        ValueError: there is no such accelerator.
    """
    if accelerator == "cpu":
        return []  # without importing torch
    import torch

    from src.running.hardware import select_accelerator

    if select_accelerator(accelerator) != "gpu":
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return names.split(",") if names else [str(number) for number in range(torch.cuda.device_count())]


def _lock_gpus(names: Sequence[str], count: int) -> dict[str, int]:
    """Hold `count` GPUs that no job of any sweep on this machine holds: open files by name; none if there are fewer."""
    if not LOCKS.exists():
        LOCKS.mkdir(exist_ok=True)
        LOCKS.chmod(0o1777)  # for other users' sweeps too
    found: dict[str, int] = {}
    for name in names:
        if len(found) == count:
            break
        path = LOCKS / name.replace("/", "-")
        # Another user's file may be read, which is enough for a lock, but not opened to be created.
        new = not path.exists()
        try:
            file = os.open(path, os.O_RDONLY | os.O_CREAT * new)
        except PermissionError:  # of one who keeps even that from us, so it may be held
            continue
        if new:
            os.fchmod(file, 0o644)  # whatever our umask
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found[name] = file
        except BlockingIOError:
            os.close(file)
    if len(found) == count:
        return found
    for file in found.values():
        os.close(file)
    return {}


@contextmanager
def _ended_together(running: dict[Job, Handle], look_every: float) -> Iterator[None]:
    """When the context is left early, have what runs end with a checkpoint, or at once when it takes too long."""
    try:
        yield
    finally:
        deadline = time.monotonic() + PATIENCE
        for handle in running.values():
            handle.terminate()
        while any(handle.poll() is None for handle in running.values()):
            if time.monotonic() > deadline:
                for handle in running.values():
                    handle.kill()
                break
            time.sleep(look_every)


def _job_return(job: Job, now: Standing) -> JobReturn:
    done = now.kind == "finished"
    returned = JobReturn(overrides=job.overrides, task_name=job.name, working_dir=str(job.folder))
    returned.status = JobStatus.COMPLETED if done else JobStatus.FAILED
    returned.return_value = now.score if done else RuntimeError(f"{job.name}: {now.text}")
    return returned
