"""Commands of tests in processes forked from one that has loaded torch and the like, which takes seconds each time."""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from src.running import signals

ROOT = Path(__file__).parent.parent
MOST = 2**17  # bytes of a request


def become(module: str, arguments: list[str], environment: dict[str, str], output: str, errors: str) -> None:
    """Be what `python -m MODULE ARGUMENTS` would be, in the checkout; jobs of a sweep and ranks are forked too."""
    gc.freeze()  # what was loaded before the fork need not be looked through again, nor its pages be copied
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in (os.devnull, output, errors)]
    if sys.platform == "linux":
        _have_jobs_forked()
    _be(module, arguments, environment, str(ROOT), files)


def _have_jobs_forked() -> None:
    Forked.nursery, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = os.getpid()
    if not os.fork():
        Forked.nursery.close()
        if signals.end_with(here, signal.SIGKILL):
            _nurse(asked)
        os._exit(0)
    asked.close()
    subprocess.Popen = Forked  # type: ignore[assignment, misc]


def _be(module: str, arguments: list[str], environment: dict[str, str], place: str, files: list[int]) -> None:
    os.chdir(place)
    os.environ.clear()
    os.environ |= environment
    for stream, file in enumerate(files):
        os.dup2(file, stream)
    from src.running.cli import PARENT  # which looks at the environment when it is imported

    if PARENT in os.environ:
        os.environ[PARENT] = str(os.getppid())
    sys.argv = [module, *arguments]
    start = torch.multiprocessing.start_processes
    torch.multiprocessing.start_processes = lambda *told, **options: start(*told, **options | {"start_method": "fork"})
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _nurse(asked: socket.socket) -> None:
    """Fork a process for each job that is asked for, until nobody asks any more; tell how they ended."""
    jobs: dict[int, Any] = {}
    while True:
        message, files, _, _ = socket.recv_fds(asked, MOST, 16)
        if not message:
            return
        request = json.loads(message)
        if isinstance(request, int):
            asked.send(json.dumps(jobs[request].exitcode).encode())
            continue
        process = multiprocessing.get_context("fork").Process(target=_grow, args=(asked, request, files))
        process.start()
        jobs[process.pid or 0] = process
        for file in files:
            os.close(file)
        asked.send(json.dumps(process.pid).encode())


def _grow(asked: socket.socket, request: dict[str, Any], files: list[int]) -> None:
    asked.close()
    os.setsid()
    nothing, log = os.open(os.devnull, os.O_RDONLY), files[0]
    module, *arguments = request["command"][2:]
    _be(module, arguments, request["environment"], request["place"], [nothing, log, log])


class Forked(subprocess.Popen[bytes]):
    """As `src.sweeping.jobs.start` starts a job, in a session of its own; any other process as ever."""

    nursery: socket.socket

    def __init__(self, args: Any, **options: Any) -> None:
        self.forked = list(args[:2]) == [sys.executable, "-m"] and "pass_fds" in options
        if not self.forked:
            super().__init__(args, **options)
            return
        request = {"command": args, "environment": options["env"], "place": options["cwd"]}
        files = [options["stdout"].fileno(), *options["pass_fds"]]
        socket.send_fds(self.nursery, [json.dumps(request).encode()], files)
        self.pid, self.returncode = json.loads(self.nursery.recv(MOST)), None
        self._child_created = False  # by this process, which waits for it at its own end otherwise

    def poll(self) -> int | None:
        if self.forked and self.returncode is None:
            self.nursery.send(json.dumps(self.pid).encode())
            self.returncode = json.loads(self.nursery.recv(MOST))
        return self.returncode if self.forked else super().poll()

    def send_signal(self, number: int) -> None:
        if not self.forked:
            super().send_signal(number)
        elif self.poll() is None:
            os.kill(self.pid, number)
