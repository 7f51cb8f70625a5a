"""Jobs on a cluster of Ray's, by its own interface: `hydra/launcher=ray`."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from src.hints import Count, NonNegative, Positive, Text
from src.running.ranks import STARTED_BY
from src.sweeping.jobs import Job, say_error, start
from src.sweeping.launchers import Handle, JobLauncher


class Ray(JobLauncher):
    """A task of Ray's a job; one whose node is lost goes on on another.

    The project and the sweep's folder must lie at the same place on all nodes.

    Args:
        jobs: the most that run at once; None: as many as the cluster has room for.
        address: of a cluster; `auto` finds that of this machine, None starts one on this machine alone.
        cpus: that each job takes.
        gpus: that each of a job's devices takes, also a part of one; None: a whole one where the cluster has GPUs.
    """

    def __init__(self, jobs: Count | None, address: Text | None, cpus: Positive, gpus: NonNegative | None) -> None:
        super().__init__(jobs)
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def start(self, jobs: Sequence[Job]) -> Iterator[Handle]:
        try:
            import ray
        except ImportError as error:
            raise ImportError("hydra/launcher=ray needs Ray: pip install '.[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(
                    self.address or "local", log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING
                )
            except ConnectionError as error:
                raise ConnectionError(f"hydra.launcher.address={self.address}: {error}") from error
        rooms = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            each = float(any("GPU" in room for room in rooms)) if self.gpus is None else self.gpus
            gpus = 0 if job.trainer["accelerator"] == "cpu" else each * job.devices(1)
            if not any(room.get("GPU", 0) >= gpus and room.get("CPU", 0) >= self.cpus for room in rooms):
                raise ValueError(
                    f"{job.label}: no node of the cluster has {gpus:g} GPUs and {self.cpus:g} CPUs: "
                    "see hydra.launcher.gpus and hydra.launcher.cpus"
                )
            task = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=-1)(_run)
            ours = {name: value for name, value in os.environ.items() if name.startswith(("ISIF_", "WANDB_"))}
            yield Submitted(job, task.remote(job, ours))


class Submitted:
    """A job that Ray has."""

    def __init__(self, job: Job, task: Any) -> None:
        self.job, self.task = job, task

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self.task))
        except Exception as error:  # Ray's, of a task that it could not run to its end
            say_error(self.job, f"Ray: {error}")
            return 1

    def terminate(self) -> None:
        import ray

        ray.cancel(self.task)

    def kill(self) -> None:
        import ray

        ray.cancel(self.task, force=True)


def _run(job: Job, environment: dict[str, str]) -> int:
    """On whichever node: run the job's command; end it with a checkpoint where Ray wants it ended."""
    process = start(job, environment, without=STARTED_BY)
    try:
        while (status := process.poll()) is None:
            time.sleep(0.2)  # what Ray interrupts, unlike process.wait()
        return status
    except BaseException:
        process.terminate()
        process.wait()
        raise
