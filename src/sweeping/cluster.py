"""Jobs on a cluster of Ray's, by its own interface: `hydra/launcher=ray`."""

import logging
from collections.abc import Sequence
from typing import Any

from src.hints import Count, NonNegative, Positive, Text
from src.sweeping.jobs import LOG, Job, start
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

    def start(self, jobs: Sequence[Job]) -> Sequence[Handle]:
        try:
            import ray
        except ImportError as error:
            raise ImportError("hydra/launcher=ray needs Ray: pip install '.[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(self.address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise ConnectionError(f"hydra.launcher.address={self.address}: {error}") from error
        there = ray.cluster_resources().get("GPU", 0)
        handles = []
        for job in jobs:
            each = (1.0 if there else 0.0) if self.gpus is None else self.gpus
            gpus = 0 if job.trainer["accelerator"] == "cpu" else each * job.devices(1)
            if gpus > there:
                raise ValueError(
                    f"{job.label}: needs {gpus:g} GPUs, the cluster has {there:g}: see hydra.launcher.gpus"
                )
            task = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=-1)(_run)
            handles.append(Submitted(job, task.remote(job)))
        return handles


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
            with (self.job.folder / LOG).open("a") as log:
                log.write(f"error: Ray: {' '.join(str(error).split())[:500]}\n")
            return 1

    def terminate(self) -> None:
        import ray

        ray.cancel(self.task)

    def kill(self) -> None:
        import ray

        ray.cancel(self.task, force=True)


def _run(job: Job) -> int:
    """On whichever node: run the job's command; end it with a checkpoint where Ray wants it ended."""
    process = start(job, {})
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
