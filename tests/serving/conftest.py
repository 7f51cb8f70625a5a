"""Digits that are served: by a thread of the tests' own, over real HTTP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest
from PIL import Image

from src.embedder import Embedder, load
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.sources import find_source
from src.serving.app import create
from src.serving.searcher import Searcher
from src.serving.server import Server, listen
from tests.conftest import write_digits

COUNT = 40


class Reply(NamedTuple):
    status: int
    headers: HTTPMessage
    content: bytes


class Client(NamedTuple):
    """Who asks a server on this machine, each time by a connection of its own."""

    port: int

    def __call__(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})  # type: ignore[arg-type]
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()


@pytest.fixture(scope="session")
def embedder(trained: Path) -> Embedder:
    return load(trained, accelerator="cpu", precision="32-true")


@pytest.fixture(scope="session")
def index(cache: Path, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of digits as PNG files."""
    folder = tmp_path_factory.mktemp("serving")
    write_digits(cache / "digits", folder / "pictures", COUNT)
    build(embedder, find_source(str(folder / "pictures")), folder / "index")
    return Index(folder / "index")


@contextmanager
def served(searcher: Searcher) -> Iterator[Client]:
    """A server in a thread, as long as the context lasts."""
    with listen(0) as socket:
        port = socket.getsockname()[1]
        server = Server(create(searcher, port, 12))
        thread = Thread(target=server.run, args=([socket],))
        thread.start()
        try:
            yield Client(port)
        finally:
            server.should_exit = True
            thread.join()
            searcher.close()


@pytest.fixture(scope="session")
def ask(index: Index, embedder: Embedder) -> Iterator[Client]:
    """One server for all the tests that leave it as it was."""
    with served(Searcher(index, embedder)) as client:
        yield client


@pytest.fixture
def serve(index: Index, embedder: Embedder) -> Callable[[], object]:
    """Starts a server of one's own."""
    return lambda: served(Searcher(index, embedder))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of an image's file."""
    content = BytesIO()
    image.save(content, format, **options)
    return content.getvalue()
