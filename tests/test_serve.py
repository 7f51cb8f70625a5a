"""`python -m src.serve`: it says where it is, answers there, and ends at once when it is told to."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, Begin, Run, Started, write_digits
from tests.serving.conftest import Client


@pytest.fixture(scope="module")
def index(trained: Path, cache: Path, command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_digits(cache / "digits", folder / "pictures", 12)
    settings = [f"run={trained}", f"images={folder / 'pictures'}", f"out={folder / 'index'}", "accelerator=cpu"]
    done = command("src.embed", *settings, HOME=str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "index"


@contextmanager
def serving(begin: Begin, index: Path, *settings: str) -> Iterator[tuple[Started, str]]:
    """The command in a process of its own, and the line it says when it serves."""
    started = begin("src.serve", f"index={index}", "accelerator=cpu", *settings, OMP_NUM_THREADS="1")
    try:
        while started.poll() is None and not started.output.endswith("\n"):
            time.sleep(0.05)
        yield started, started.output
    finally:
        started.process.kill()
        started.process.join()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_comes(begin: Begin, index: Path, number: signal.Signals, status: int) -> None:
    with serving(begin, index, "port=0", "k=5") as (started, line):
        (port,) = re.findall(r"^12 images can be searched at http://127\.0\.0\.1:(\d+) until Ctrl-C$", line)
        ask = Client(int(port))
        assert len(json.loads(ask("GET", "/neighbors/3").content)["neighbors"]) == 5
        assert b"<option selected>5</option>" in ask("GET", "/").content
        with (
            socket.create_connection(("127.0.0.1", ask.port)) as slow,
            socket.create_connection(("127.0.0.1", ask.port)),
        ):
            slow.sendall(f"POST /search HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 9\r\n\r\nx".encode())
            time.sleep(0.2)
            began = time.monotonic()
            started.send_signal(number)
            done = started.ended(60)  # however many are still connected
        assert time.monotonic() - began < 10
        assert (done.returncode, done.stdout, done.stderr) == (status, line, "")
    with socket.create_server(("127.0.0.1", int(port))):  # and the port is free again
        pass


def test_only_this_machine_reaches_it(begin: Begin, index: Path) -> None:
    with serving(begin, index, "port=0") as (_, line):
        port = int(line.split(":")[2].split()[0])
        listening = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [row[1] for row in listening if row[1].endswith(f":{port:04X}") and row[3] == "0A"] == [
            f"0100007F:{port:04X}"
        ]


def test_a_port_that_is_taken_is_named(index: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("src.serve", f"index={index}", f"port={port}")
    reason = "Address already in use"
    expected = f"error: port={port} can't be used ({reason}): choose another, or 0 for one that is free\n"
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["port=70000"], "port=70000: must be a whole number of at least 0 and of at most 65535"),
        (["k=0"], "k=0: must be a whole number of at least 1 and of at most 100"),
        (["k=ten"], "k=ten: must be a whole number"),
        (["index=nowhere"], "nowhere is no index"),
        (["run=nowhere"], "run=nowhere: no run is there"),
        (["host=0.0.0.0"], "Key 'host' is not in struct"),
    ],
)
def test_mistakes_are_told_in_one_line(index: Path, run: Run, settings: list[str], words: str) -> None:
    done = run("src.serve", f"index={index}", "port=0", *settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_help_needs_no_torch(run: Run) -> None:
    script = "import sys, src.serve; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    page = run("src.serve", "--help")
    assert page.returncode == 0, page.stderr
    assert "python -m src.serve index=INDEX" in page.stdout
