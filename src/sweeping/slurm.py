"""Jobs on a cluster of Slurm's, by submitit: `hydra/launcher=slurm`."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from src.hints import Count, Plain, Positive, Text
from src.sweeping.jobs import Job, say_error, start
from src.sweeping.launchers import Handle, JobLauncher

NOTE = ".slurm"  # in a job's folder: Slurm's number of it
LOOK_EVERY = 5.0  # seconds between two questions to Slurm


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

    look_every = LOOK_EVERY

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
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / NOTE).write_text("")  # what can't be written is told before anything is submitted
                alike[self._size(job)].append(job)
        for (nodes, devices, gpus), members in alike.items():
            tasks = 1 if self.cluster == "local" else devices  # without srun a run starts its ranks itself
            try:
                executor = self._executor(members[0].sweep)
                executor.update_parameters(nodes=nodes, tasks_per_node=tasks, gpus_per_node=devices if gpus else 0)
                with executor.batch():
                    submitted = [executor.submit(Task(job)) for job in members]
            except RuntimeError as error:  # submitit's: there is no Slurm, or it refuses
                raise ChildProcessError(f"hydra/launcher=slurm: {error}") from error
            for job, known in zip(members, submitted, strict=True):
                (job.folder / NOTE).write_text(known.job_id)
                handles[job] = Submitted(job, known)
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
        number = note.read_text() if note.exists() else ""
        if self.cluster == "local" or not number:
            return None
        from submitit import SlurmJob

        known: Any = SlurmJob(job.sweep / "slurm", number)
        gone = known.done(force_check=True) or known.state == "UNKNOWN" or preempted_for_good(known)
        return None if gone else Submitted(job, known)


class Submitted:
    """A job that Slurm has."""

    def __init__(self, job: Job, known: Any) -> None:
        self.job, self.known, self.ended = job, known, False

    def poll(self) -> int | None:
        if self.ended:
            self.known.get_info("force")  # by itself submitit asks Slurm every ten minutes
        if preempted_for_good(self.known):
            say_error(self.job, f"Slurm's job {self.known.job_id}: it was preempted, and is in the queue no more")
            return 1
        if not self.known.done():
            return None
        if self.ended:
            return 1  # there is no result to wait for
        try:
            return max(map(int, self.known.results()), default=0)
        except Exception as error:  # submitit's, of a job that ended without a result, or what the task raised
            trace = re.search(r"^-{22}$(.*)^-{22}$", str(error), re.MULTILINE | re.DOTALL)
            why = trace[1].strip().splitlines()[-1] if trace else error
            say_error(self.job, f"Slurm's job {self.known.job_id}: {why}")
            return 1

    def terminate(self) -> None:
        from submitit import LocalJob

        self.ended = True
        if not isinstance(self.known, LocalJob):
            self.known.cancel(check=False)
        elif not self.known.done():
            os.kill(int(self.known.job_id), signal.SIGTERM)  # its `cancel` leaves a job a second

    def kill(self) -> None:
        self.known.cancel(check=False)


def preempted_for_good(known: Any) -> bool:
    """Whether Slurm preempted a job and has not put it back into the queue, as it may: submitit would wait for ever."""
    return known.state == "PREEMPTED" and state_of(known.job_id) == ""


def state_of(number: str) -> str | None:
    """Of Slurm's job `number`, as its queue has it; empty where it isn't there, None where Slurm does not say."""
    asked = subprocess.run(["squeue", "-h", "-j", number, "-o", "%T"], capture_output=True, text=True)
    absent = "Invalid job id" in asked.stderr
    return None if asked.returncode and not absent else asked.stdout.strip()


class Task:
    """What a task of a job does, on whichever node: run its command; tell it when it has to make room."""

    def __init__(self, job: Job) -> None:
        self.job, self.ended = job, False
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        signal.signal(signal.SIGTERM, self._end)
        self.process = start(self.job, {})
        status = self.process.wait()
        if self.ended:
            # Within the grace time of a preemption a job that leaves has failed; one that stays is put into the queue.
            while os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and state_of(os.environ["SLURM_JOB_ID"]) == "RUNNING":
                time.sleep(LOOK_EVERY)
            sys.exit(128 + signal.SIGTERM)  # without a result: Slurm says whether it is over, or goes on
        return status

    def checkpoint(self) -> Any:
        """Asked for by submitit before it puts the job back into the queue."""
        from submitit.helpers import DelayedSubmission

        self._end()
        if self.process:
            with suppress(ChildProcessError):  # Popen's own `wait` holds a lock in what the signal interrupted
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self.job))

    def _end(self, *signalled: Any) -> None:
        """Once: a second signal would not leave it the time for a checkpoint."""
        if self.process is None:
            sys.exit(128 + signal.SIGTERM)
        if not self.ended:
            self.ended = True
            self.process.terminate()
