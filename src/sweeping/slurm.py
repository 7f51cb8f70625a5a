"""Jobs on a cluster of Slurm's, by submitit: `hydra/launcher=slurm`."""

import math
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from src.hints import Count, Plain, Positive, Text
from src.sweeping.jobs import LOG, Job, start
from src.sweeping.launchers import Handle, JobLauncher

NOTE = ".slurm"  # in a job's folder: Slurm's number of it


class Slurm(JobLauncher):
    """Every job an element of an array, with a task for each of its devices on each of its nodes.

    Before its time is over, or where it is preempted, a job writes a checkpoint, returns to the queue, and goes on.
    Jobs stay in the queue when the process that started them dies; the same command finds them there.

    Args:
        jobs: the most that run at once; None: as many as Slurm lets.
        cluster: `slurm`, or `local` to try it on this machine without.
        minutes: that a job may take at a time.
        requeues: how often a job that ran out of time goes on.
        warning: seconds before the end of its time at which a job is told.
        gpus_per_node: what a node has, for `trainer.devices=-1`.
        cpus_per_task: cores of each device.
        mem_gb: memory of a node.
        partition, account, qos: as of sbatch.
        setup: lines of shell to run before.
        others: any other option of sbatch, `{constraint: a100}`.
    """

    look_every = 5.0

    def __init__(
        self,
        jobs: Count | None,
        cluster: Literal["slurm", "local"],
        minutes: Count,
        requeues: Count,
        warning: Count,
        gpus_per_node: Count | None,
        cpus_per_task: Count,
        mem_gb: Positive | None,
        partition: Text | None,
        account: Text | None,
        qos: Text | None,
        setup: Sequence[Text],
        others: Mapping[str, Plain],
    ) -> None:
        super().__init__(jobs)
        self.cluster, self.minutes, self.requeues, self.gpus_per_node = cluster, minutes, requeues, gpus_per_node
        self.options: dict[str, Any] = {"timeout_min": minutes, "slurm_signal_delay_s": warning, "mem_gb": mem_gb}
        self.options |= {"cpus_per_task": cpus_per_task, "slurm_partition": partition, "slurm_account": account}
        self.options |= {"slurm_qos": qos, "slurm_setup": list(setup), "slurm_additional_parameters": dict(others)}
        if cluster == "local":
            self.look_every = 0.5

    def start(self, jobs: Sequence[Job]) -> Sequence[Handle]:
        handles: dict[Job, Handle] = {}
        alike: dict[tuple[int, int, bool], list[Job]] = defaultdict(list)
        for job in jobs:
            if found := self._find(job):
                handles[job] = found
            else:
                alike[self._size(job)].append(job)
        for (nodes, devices, gpus), members in alike.items():
            executor = self._executor(members[0].sweep)
            executor.update_parameters(nodes=nodes, tasks_per_node=devices, gpus_per_node=devices if gpus else 0)
            with executor.batch():
                submitted = [executor.submit(Task(job)) for job in members]
            for job, handle in zip(members, submitted, strict=True):
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / NOTE).write_text(handle.job_id)
                handles[job] = Submitted(job, handle)
        return [handles[job] for job in jobs]

    def _size(self, job: Job) -> tuple[int, int, bool]:
        """Nodes, devices on each, and whether these are GPUs."""
        if job.trainer["devices"] in (-1, "-1", "auto") and self.gpus_per_node is None:
            raise ValueError("trainer.devices=-1: say with hydra.launcher.gpus_per_node how many GPUs a node has")
        return job.trainer["num_nodes"], job.devices(self.gpus_per_node or 1), job.trainer["accelerator"] != "cpu"

    def _executor(self, sweep: Path) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("hydra/launcher=slurm needs submitit: pip install '.[slurm]'") from error
        executor = submitit.AutoExecutor(sweep / "slurm", self.cluster, slurm_max_num_timeout=self.requeues)
        at_once = {} if self.most == math.inf else {"slurm_array_parallelism": int(self.most)}
        kept = {name: value for name, value in (self.options | at_once).items() if value not in (None, [], {})}
        executor.update_parameters(name=sweep.name, stderr_to_stdout=True, **kept)
        return executor

    def _find(self, job: Job) -> "Submitted | None":
        """A job that is in Slurm's queue since an earlier call, or runs."""
        note = job.folder / NOTE
        if self.cluster == "local" or not note.exists():
            return None
        from submitit import SlurmJob

        known: Any = SlurmJob(job.sweep / "slurm", note.read_text())
        return None if known.done(force_check=True) else Submitted(job, known)


class Submitted:
    """A job that Slurm has."""

    def __init__(self, job: Job, known: Any) -> None:
        self.job, self.known = job, known

    def poll(self) -> int | None:
        if not self.known.done():
            return None
        try:
            return max(map(int, self.known.results()), default=0)
        except Exception as error:  # submitit's, of a job that ended without a result, or what the task raised
            with (self.job.folder / LOG).open("a") as log:
                log.write(f"error: Slurm's job {self.known.job_id}: {' '.join(str(error).split())[:500]}\n")
            return 1

    def terminate(self) -> None:
        self.known.cancel()

    kill = terminate


class Task:
    """What a task of a job does, on whichever node: run its command; tell it when it has to make room."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> int:
        self.process = start(self.job, {})
        signal.signal(signal.SIGTERM, lambda number, frame: self.process.terminate())
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Asked for by submitit before it puts the job back into the queue."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        self.process.wait()
        return DelayedSubmission(Task(self.job))
