"""Several processes for one run, which find each other as Lightning's DDP does."""

import builtins
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from src.running import signals

STARTED_BY = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID")  # what torchrun's and srun's processes have in their environment
PATIENCE = 5  # seconds that ranks have to close their files when one has ended


def find_cluster(devices: int, nodes: int) -> Any:
    """Lightning's environment of torchrun or srun where one of them started this process and others; None elsewhere.

    Raises:
        ValueError: it started others than `devices` processes on each of `nodes`, or none where there are several.
    """
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    found: Any = None
    if TorchElasticEnvironment.detect():
        found = TorchElasticEnvironment()
    elif "SLURM_STEP_ID" in os.environ and int(os.environ["SLURM_NTASKS"]) > 1:  # of srun's; a batch script has none
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning's condition, held below
        found = SLURMEnvironment(auto_requeue=False)
    if found is None and nodes > 1:
        raise ValueError(f"trainer.num_nodes={nodes}: start its processes by srun or torchrun, see docs/scaling.md")
    if found and found.world_size() != devices * nodes:
        raise ValueError(
            f"trainer.devices={devices} on each of trainer.num_nodes={nodes} are {devices * nodes} processes, but "
            f"{type(found).__name__.removesuffix('Environment')} started {found.world_size()}"
        )
    return found


def spawn(function: Callable[..., object], ranks: int, *arguments: Any) -> None:
    """Run `function(*arguments)` in `ranks` processes; none outlives another that failed, nor this one.

    A signal to this process goes on to the ranks, which end in their own time; a second one ends them at once.
    Lightning's own launcher starts the command line again, which in a multirun would start the sweep again.

    Raises:
        Exception: of the first rank that failed; the message names it.
        ChildProcessError: a rank was killed.
        SystemExit: a signal came.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = (function, ranks, port, os.getpid(), arguments)
    context = start_processes(_rank, told, ranks, join=False, start_method="spawn")

    def pass_on(number: int) -> None:
        _tell(context.processes, signal.SIGTERM)

    signals.instead(pass_on)
    try:
        while not context.join(grace_period=PATIENCE):
            pass
    except ProcessRaisedException as error:
        # The last line of the rank's traceback says what went wrong, a user's mistake or ours.
        name, _, message = error.msg.strip().splitlines()[-1].partition(": ")
        kind = getattr(builtins, name.rsplit(".", 1)[-1], RuntimeError)
        if signals.asked() and kind is RuntimeError:  # it missed a rank that the signal had ended
            signals.leave()
        raise kind(f"{message} (rank {error.error_index} of {ranks})") from error
    except ProcessExitedException as error:
        if signals.asked():
            signals.leave()
        cause = f"was killed by {error.signal_name}" if error.signal_name else f"ended with status {error.exit_code}"
        raise ChildProcessError(f"rank {error.error_index} of {ranks} {cause}; the others were ended") from error
    finally:
        signals.instead(None)
        _end(context.processes)


def _tell(processes: Any, number: int) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


def _end(processes: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE
        _tell(processes, number)
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))


def _rank(
    rank: int, function: Callable[..., object], ranks: int, port: int, parent: int, arguments: tuple[Any, ...]
) -> None:
    if not signals.end_with(parent, signal.SIGKILL):
        return
    for number in (signal.SIGINT, signal.SIGUSR1):  # Ctrl-C and Slurm reach all of them; the parent tells its ranks
        signal.signal(number, signal.SIG_IGN)
    signals.listen()
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)
