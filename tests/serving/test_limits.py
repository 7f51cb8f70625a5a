"""What is too large, too slow or too much at once ends in words, and leaves room for the others."""

import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.embedder import Embedder
from src.indexing.index import Index
from src.serving import guard, searcher, server
from src.serving.app import BYTES
from src.serving.searcher import Searcher
from tests.serving.conftest import Client, encoded, served

Serve = Callable[[], AbstractContextManager[Client]]


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A grey PNG of any size, with the compressed pixels that are given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def begin(client: Client, head: str) -> socket.socket:
    """A connection that has sent the beginning of a request."""
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    connection.sendall(head.format(host=f"127.0.0.1:{client.port}").encode())
    return connection


def pour(connection: socket.socket, content: bytes, times: int, pause: float = 0) -> int:
    """Send the same again and again, until the server has hung up; how often that went well."""
    for number in range(times):
        try:
            connection.sendall(content)
        except ConnectionError:
            return number
        time.sleep(pause)
    return times


def read(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and what the JSON says, until the server hangs up."""
    content = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            content += part
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


UPLOAD = "POST /search HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"


def test_the_largest_image_that_is_taken(ask: Client) -> None:
    image = encoded(Image.new("L", (32, 32)), "PNG")
    assert ask("POST", "/search", image.ljust(BYTES, b"\0")).status == 200
    reply = ask("POST", "/search", image.ljust(BYTES + 1, b"\0"))
    assert (reply.status, json.loads(reply.content)["detail"]) == (413, "the image is larger than 10 MiB")


def test_a_body_without_an_end_is_cut_off(ask: Client) -> None:
    connection = begin(ask, UPLOAD + "Transfer-Encoding: chunked\r\n\r\n")
    sent = 2**16 * pour(connection, b"10000\r\n" + bytes(2**16) + b"\r\n", 5000)
    status, _, answer = read(connection)
    assert (status, answer["detail"]) == (413, "the image is larger than 10 MiB")
    assert BYTES <= sent < 3 * BYTES  # what the system has under way is not read


def test_pixels_are_counted_before_they_are_decoded(ask: Client) -> None:
    for size, words in (((8000, 8000), "8000x8000 pixels, more than 50,000,000"), ((60000, 60000), "pixels")):
        began = time.perf_counter()
        reply = ask("POST", "/search", png(*size))
        assert reply.status == 400
        assert words in json.loads(reply.content)["detail"]
        assert time.perf_counter() - began < 5
    level = np.zeros((1000, 1001), np.uint8)  # each row begins with the filter's number
    assert ask("POST", "/search", png(1000, 1000, zlib.compress(level.tobytes()))).status == 200


def test_scans_of_a_jpeg_are_counted(ask: Client) -> None:
    content = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xda") : -2]
    assert ask("POST", "/search", content).status == 200
    reply = ask("POST", "/search", content[:-2] + last * 2000 + content[-2:])
    assert (reply.status, json.loads(reply.content)["detail"].split(":")[1]) == (400, " it has more than 300 scans")


def test_when_full_it_says_when_to_come_again(serve: Serve, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "ROOM", 2)
    image = Path(index.path(0)).read_bytes()
    with serve() as ask:
        inside = [begin(ask, UPLOAD + "Content-Length: 999\r\n\r\n") for _ in range(2)]
        wait_until(lambda: ask("POST", "/search", image).status == 503)
        for method, path in (("POST", "/search"), ("GET", "/neighbors/0"), ("GET", "/image/0")):
            reply = ask(method, path, image if method == "POST" else None)
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
            assert json.loads(reply.content)["detail"] == "too many ask at this moment: try again"
        assert ask("GET", "/").status == 200
        for connection in inside:
            connection.close()
        wait_until(lambda: ask("POST", "/search", image).status == 200)


def test_a_slow_client_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.5)
    with serve() as ask:
        began = time.perf_counter()
        connection = begin(ask, UPLOAD + "Content-Length: 999\r\n\r\nx")
        status, headers, answer = read(connection)
        assert 0.5 <= time.perf_counter() - began < 10
        assert (status, headers["connection"], answer["detail"]) == (408, "close", "this took longer than 0.5 seconds")


def test_who_asks_nothing_is_hung_up_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SILENCE", 1)
    with serve() as ask:
        for head in ("", "GET / HTTP/1.1\r\nHost: {host}\r\nX-"):
            began = time.perf_counter()
            connection = begin(ask, head)
            assert connection.recv(1) == b""
            assert 0.9 < time.perf_counter() - began < 20
        slow = begin(ask, "GET / HTTP/1.1\r\nX: ")
        assert pour(slow, b"x", 200, pause=0.1) < 200  # a little at a time is nothing either
        busy = begin(ask, UPLOAD + "Content-Length: 1\r\n\r\n")
        time.sleep(1.5)
        busy.sendall(b"x")  # who has asked something may take longer
        assert read(busy)[0] == 400


def test_connections_are_kept_for_who_goes_on(ask: Client) -> None:
    connection = HTTPConnection("127.0.0.1", ask.port, timeout=60)
    sockets = set()
    for _ in range(3):
        connection.request("GET", "/neighbors/1")
        sockets.add(connection.sock)
        assert connection.getresponse().read()
    assert len(sockets) == 1
    connection.close()


def test_what_comes_together_shares_a_batch(index: Index, embedder: Embedder) -> None:
    seen = []

    class Counting(Searcher):
        def _answer(self, queries: Any) -> Any:
            seen.append(len(queries))
            time.sleep(0.1)
            return super()._answer(queries)

    images = [Path(index.path(row)).read_bytes() for row in range(40)]
    with served(Counting(index, embedder)) as ask, ThreadPoolExecutor(40) as clients:
        replies = list(clients.map(lambda image: ask("POST", "/search?k=1", image), images))
    assert [json.loads(reply.content)["neighbors"][0]["row"] for reply in replies] == [*range(40)]
    assert sum(seen) == 40
    assert len(seen) < 20
    assert max(seen) <= searcher.BATCH


def test_who_goes_away_leaves_nothing_behind(
    index: Index, embedder: Embedder, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(mine := Searcher(index, embedder)) as ask:
        for tail in ("Content-Length: 999\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n5\r\nabc", "X"):
            begin(ask, UPLOAD + tail).close()
        wait_until(lambda: not mine.inside)
        for _ in range(10):
            begin(ask, "GET /neighbors/3 HTTP/1.1\r\nHost: {host}\r\n\r\n").close()
        assert ask("GET", "/neighbors/3").status == 200
        wait_until(lambda: not mine.inside)
    assert "Traceback" not in "".join(capfd.readouterr())


def wait_until(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not look():
        assert time.monotonic() < end
        time.sleep(0.02)
