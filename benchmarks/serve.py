"""The search page under load, a tenth of it broken or hostile: `python -m benchmarks.serve RUN FOLDER`."""

import io
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.timing import heading
from src.datamodules.images import find_images
from src.embedder import load
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.sources import find_source

REQUESTS, CLIENTS = 10_000, 50
SHARES = {"POST /search": 50, "GET /neighbors": 20, "GET /image": 20, "broken or hostile": 10}  # percent
PIXELS = 7000  # a side of images that are large, but allowed; one in a thousand requests
LIMIT = 10 * 2**20  # bytes of an image


Attacks = Mapping[str, tuple[int, Sequence[bytes]]]


class Outcome(NamedTuple):
    kind: str
    expected: int
    status: int  # 0: no answer
    seconds: float


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG of any size with these pixels, compressed already."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def hostile(photograph: bytes) -> Attacks:
    """What is sent, in parts, and the status that it must end in, 0 where nobody waits for it; HOST is the server."""

    def post(content: bytes, more: str = "") -> list[bytes]:
        return [
            f"POST /search HTTP/1.1\r\nHost: HOST\r\n{more}Content-Length: {len(content)}\r\n\r\n".encode(),
            content,
        ]

    def get(path: str, host: str = "HOST") -> list[bytes]:
        return [f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()]

    large = io.BytesIO()
    Image.new("RGB", (PIXELS, PIXELS)).save(large, "PNG")
    chunked = b"POST /search HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n"
    return {
        "half a JPEG": (400, post(photograph[: len(photograph) // 2])),
        "no byte": (400, post(b"")),
        "text": (400, post(b"no image")),
        "a PNG of 4 gigapixels": (400, post(png(65535, 65535, zlib.compress(bytes(99))))),
        "a PNG that ends early": (400, post(png(3000, 3000, zlib.compress(bytes(99))))),
        "10 MiB and a byte": (413, post(bytes(LIMIT + 1))),
        "a body without an end": (413, [chunked, *repeat(b"10000\r\n" + bytes(2**16) + b"\r\n", 1000)]),
        "hanging up": (0, post(photograph)[:1]),
        "no HTTP": (400, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"]),
        "another host's name": (403, get("/neighbors/1", "evil.example")),
        "another page": (403, post(photograph, "Origin: http://evil.example\r\n")),
        "another file": (404, get("/image/..%2f..%2fetc%2fpasswd")),
        "no such row": (404, get("/image/99999999")),
        "no such k": (422, get("/neighbors/1?k=-1")),
        "49 megapixels": (200, post(large.getvalue())),
    }


def speak(port: int, parts: Iterable[bytes], waits: bool) -> int:
    """Send all that is taken, and read the status."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part.replace(b"HOST", f"127.0.0.1:{port}".encode()) if len(part) < 999 else part)
        found = re.match(rb"HTTP/1\.1 (\d+)", connection.recv(4096)) if waits else None
        return int(found[1]) if found else 0


def client(port: int, number: int, photographs: list[bytes], attacks: Attacks, count: int) -> list[Outcome]:
    """The requests of one client, one after another, by a connection that is kept where it is treated well."""
    draw = random.Random(number)
    kept = HTTPConnection("127.0.0.1", port, timeout=120)
    outcomes = []
    weights = [1 if name == "49 megapixels" else 7 for name in attacks]
    for _ in range(REQUESTS // CLIENTS):
        kind = draw.choices([*SHARES], [*SHARES.values()])[0]
        row, photograph = draw.randrange(count), draw.choice(photographs)
        attack = draw.choices([*attacks], weights)[0]
        began, expected = time.perf_counter(), 200
        try:
            if kind == "broken or hostile":
                kind, (expected, parts) = attack, attacks[attack]
                kept.close()  # some take longer than an idle connection is kept
                status = speak(port, parts, waits=expected > 0)
            else:
                method, path = kind.split()
                kept.request(method, path if method == "POST" else f"{path}/{row}", photograph * (method == "POST"))
                response = kept.getresponse()
                status = response.status * bool(response.read())
        except OSError:
            kept.close()
            status = 0
        outcomes.append(Outcome(kind, expected, status, time.perf_counter() - began))
    kept.close()
    return outcomes


def memory(process: int, which: str) -> str:
    """MiB, as Linux counts them: `VmRSS` now, `VmHWM` at most."""
    return f"{int(Path(f'/proc/{process}/status').read_text().split(f'{which}:')[1].split()[0]) / 1024:,.0f} MiB"


def row(name: str, outcomes: list[Outcome]) -> None:
    statuses = Counter(outcome.status for outcome in outcomes)
    failed = sum(outcome.status != outcome.expected for outcome in outcomes)
    p50, p99, most = 1e3 * np.quantile([outcome.seconds for outcome in outcomes], [0.5, 0.99, 1])
    said = ", ".join(f"{count:,} x {status or 'no answer'}" for status, count in sorted(statuses.items()))
    print(f"| {name} | {said}; {failed} failed | {p50:,.0f} ms, {p99:,.0f} ms, {most:,.0f} ms |", flush=True)


def main() -> None:
    if len(sys.argv) != 3:
        print("left out: it takes a run and a folder of photographs, python -m benchmarks.serve RUN FOLDER")
        return
    run, folder = sys.argv[1:]
    photographs = [path.read_bytes() for path in find_images(Path(folder).resolve())[::10]]
    with tempfile.TemporaryDirectory() as place:
        build(load(run, accelerator="cpu"), find_source(folder), Path(place) / "index")
        count = len(Index(Path(place) / "index"))
        title = f"{REQUESTS:,} requests of {CLIENTS} clients to src.serve, an index of {count:,} photographs"
        heading(title, ("answers", "p50, p99, slowest"))
        command = [sys.executable, "-m", "src.serve", f"index={place}/index", "port=0", "accelerator=cpu"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            port = int(re.findall(r":(\d+) ", process.stdout.readline())[0])
            begun, began = memory(process.pid, "VmRSS"), time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                same = map(repeat, (photographs, hostile(photographs[0]), count))
                done = pool.map(client, repeat(port), range(CLIENTS), *same)
                outcomes = [outcome for one in done for outcome in one]
            seconds = time.perf_counter() - began
            ended, peak = memory(process.pid, "VmRSS"), memory(process.pid, "VmHWM")
            process.send_signal(signal.SIGTERM)
            kinds = defaultdict(list)
            for outcome in outcomes:
                kinds[outcome.kind].append(outcome)
            for name in [*SHARES, *sorted(kinds.keys() - SHARES.keys())]:
                if name in kinds:
                    row(name, kinds[name])
            row(f"all, {len(outcomes) / seconds:.0f} requests/s", outcomes)
        used = f"{begun} at start, {ended} at the end, {peak} at most"
        print(f"| the server: memory, and status at SIGTERM | {used} | {process.returncode} |")


if __name__ == "__main__":
    main()
