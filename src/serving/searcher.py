"""An index and its network, for many who ask at the same time."""

import asyncio
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from src.datamodules.images import open_rgb, printable, to_square
from src.embedder import Embedder
from src.indexing.gallery import thumbnail
from src.indexing.index import Index
from src.serving.batching import Batcher
from src.vectors.neighbors import search

BATCH = 32  # images that the network sees at once: more would make each wait for many
ROOM = 64  # requests inside at the same moment; of images, 10 MiB each
PIXELS = 50_000_000  # of an image that is searched with
SCANS = 300  # of a JPEG: each goes over all its pixels, and is a few bytes; any 10 MiB seem to begin about 160
SIDE, THUMBNAILS = 320, 1024  # pixels of a thumbnail at most, and how many are kept, about 20 KB each

T = TypeVar("T")


class Hit(NamedTuple):
    """An image found: its row, its name, and its cosine similarity to the query."""

    row: int
    name: str
    similarity: float


class Query(NamedTuple):
    """An image as the network takes it, `(side, side, 3)`, or a row of the index; and how many hits are wanted."""

    what: NDArray[np.uint8] | int
    k: int


class Full(Exception):
    """There is no room for another request."""


class Searcher:
    """One thread embeds and searches, for all that wait at once; some more decode.

    Args:
        index: what is searched.
        embedder: the network that made it.
    """

    def __init__(self, index: Index, embedder: Embedder) -> None:
        self.index, self.embedder = index, embedder
        self.batcher = Batcher(self._answer, BATCH)
        self.decoders = ThreadPoolExecutor(os.cpu_count() or 1)
        self.inside = 0
        self._thumbnail = lru_cache(THUMBNAILS)(self._draw)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Be one of those who may ask at the same moment.

        Raises:
            Full: there are `ROOM` already.
        """
        if self.inside >= ROOM:
            raise Full
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def name(self, row: int) -> str:
        """Of an image of the index, for a person."""
        return printable(self.index.find(row).name)

    async def by_image(self, content: bytes, k: int) -> list[Hit]:
        """The `k` images most similar to that of a file, most similar first, or as many as there are.

        Raises:
            OSError: it can't be decoded, or would take too much to; the message says why.
        """
        return await self.batcher.ask(Query(await self._apart(partial(self._read, content)), k))

    async def by_row(self, row: int, k: int) -> list[Hit]:
        """The same for an image of the index, but for that image itself."""
        return await self.batcher.ask(Query(row, k))

    async def picture(self, row: int) -> bytes:
        """An image of the index, small, as WebP.

        Raises:
            OSError, ValueError, LookupError: it is no longer there.
        """
        return await self._apart(partial(self._thumbnail, row))

    def close(self) -> None:
        """Begin nothing any more."""
        self.batcher.close()
        self.decoders.shutdown(wait=False, cancel_futures=True)

    async def _apart(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, call)

    def _read(self, content: bytes) -> NDArray[np.uint8]:
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > SCANS:
            raise OSError(f"the image can't be decoded: it has more than {SCANS} scans")
        image = open_rgb(io.BytesIO(content), "the image", PIXELS)
        return to_square(image, self.embedder.side, self.embedder.resample)

    def _draw(self, row: int) -> bytes:
        return thumbnail(self.index.open(row), SIDE)

    def _answer(self, queries: Sequence[Query]) -> list[list[Hit]]:
        vectors = np.empty((len(queries), self.embedder.dim), np.float32)
        rows = {place: query.what for place, query in enumerate(queries) if isinstance(query.what, int)}
        images = {place: query.what for place, query in enumerate(queries) if place not in rows}
        vectors[[*rows]] = self.index.vectors[[*rows.values()]]
        if images:
            vectors[[*images]] = self.embedder.encode(np.stack([*images.values()]))
        most = min(max(query.k for query in queries) + 1, len(self.index))  # one more: a row finds itself
        found = search(torch.from_numpy(vectors), torch.from_numpy(self.index.vectors), most)
        answers = []
        for place, (similarities, numbers) in enumerate(zip(*(part.tolist() for part in found), strict=True)):
            hits = [hit for hit in zip(numbers, similarities, strict=True) if hit[0] != rows.get(place)]
            answers.append([Hit(row, self.name(row), value) for row, value in hits[: queries[place].k]])
        return answers
