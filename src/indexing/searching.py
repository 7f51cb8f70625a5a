"""Queries, and what is found for them in one or several indices."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from src.embedder import Embedder, load
from src.indexing.index import META, NAMES, Index
from src.indexing.sources import find_source
from src.vectors.neighbors import QUERIES, search

Opener = Callable[[], Image.Image]
# Queries `(Q, D)`, k, and the rows that the queries are themselves, to similarities and rows `(Q, k)`.
Search = Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Hit:
    """An image found: its cosine similarity to the query, -1 to 1, and where it is."""

    similarity: float
    index: Index
    row: int

    def open(self) -> Image.Image:
        """The image; errors as of `Index.open`."""
        return self.index.open(self.row)


class Result(NamedTuple):
    """What was found for a query, most similar first; the query by its name, and as an image where it is one."""

    query: str
    open: Opener | None
    hits: list[Hit]


class Queries(NamedTuple):
    """Queries: names, images where they are some, unit-norm vectors `(Q, D)`, and the rows that they are themselves."""

    names: list[str]
    images: list[Opener | None]
    vectors: NDArray[np.float32]
    own: Tensor | None


def open_indices(folders: str | Sequence[str]) -> list[Index]:
    """Indices that can be searched together.

    Raises:
        FileNotFoundError, ValueError: one is missing or damaged, or they are of different networks.
    """
    paths = [folders] if isinstance(folders, str) else folders
    indices = [Index(Path(path).expanduser()) for path in paths]
    for other in indices[1:]:
        check_same_network(indices[0], other)
    return indices


def check_same_network(one: Index, other: Index) -> None:
    """Raise a ValueError where vectors of the two can't be compared."""
    if one.meta["fingerprint"] != other.meta["fingerprint"]:
        raise ValueError(
            f"{one.folder} and {other.folder} are of different networks ({one.meta['run']}, {one.meta['space']}; "
            f"{other.meta['run']}, {other.meta['space']}): embed both by one run"
        )


def is_index(path: Path) -> bool:
    """Whether a query is an index."""
    return (path / META).is_file() and (path / NAMES).is_file()


def from_index(index: Index, rows: Sequence[int] | None, itself: bool) -> Iterator[Queries]:
    """The images of an index as queries, all or some; `itself`: of the only index that is searched.

    Raises:
        ValueError: it has no such row.
    """
    chosen: Sequence[int] = range(len(index)) if rows is None else rows
    if wrong := [row for row in chosen if row >= len(index)] if rows else None:
        raise ValueError(f"rows={wrong[0]}: {index.folder} has {len(index)} images, 0 to {len(index) - 1}")
    for start in range(0, len(chosen), QUERIES):
        part = np.array(chosen[start : start + QUERIES])
        names = [index.path(int(row)) for row in part]
        images: list[Opener | None] = [partial(index.open, int(row)) for row in part]
        yield Queries(names, images, index.vectors[part], torch.from_numpy(part) if itself else None)


def from_vectors(path: Path, dim: int) -> Iterator[Queries]:
    """Vectors `(Q, D)`, or one `(D,)`, of a `.npy` file as queries, brought to unit norm.

    Raises:
        ValueError: they are no such vectors.
    """
    try:
        vectors = np.atleast_2d(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"query={path} can't be read: {error}") from error
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind != "f" or not len(vectors):
        raise ValueError(f"query={path}: {vectors.dtype} {vectors.shape}, the index has vectors of {dim} numbers")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and norms.all()):
        raise ValueError(f"query={path}: vectors must be finite and not 0")
    for start in range(0, len(vectors), QUERIES):
        part = slice(start, start + QUERIES)
        names = [f"{path}:{row}" for row in range(*part.indices(len(vectors)))]
        yield Queries(names, [None] * len(names), (vectors[part] / norms[part]).astype(np.float32), None)


def from_images(images: str, embedder: Embedder) -> Iterator[Queries]:
    """Images as queries; what can't be decoded is said on standard error and left out.

    Raises:
        FileNotFoundError: there is nothing of that name.
        OSError: none of them can be decoded.
    """
    source = find_source(images)
    entries, last, found = iter(source), "", False
    while group := list(islice(entries, embedder.batch_size)):
        names: list[str] = []
        opened: list[Opener | None] = []
        squares = []
        for entry in group:
            try:
                squares.append(source.read(entry, embedder.side, embedder.resample)[0])
            except OSError as error:
                if last:
                    print(f"left out: {last}", file=sys.stderr)
                last = str(error)
                continue
            names.append(str(source.root / entry.name))
            opened.append(partial(source.open, entry.name))
        if names:
            found = True
            yield Queries(names, opened, embedder.encode(np.stack(squares)), None)
    if not found:
        raise OSError(last or f"query={images}: no images are there")
    if last:
        print(f"left out: {last}", file=sys.stderr)


def load_network(index: Index, run: str | None, accelerator: Any) -> Embedder:
    """The network that made an index, from `run` or where the index says.

    Raises:
        FileNotFoundError, ValueError: it is not there, or another one.
    """
    place, meta = run or index.meta["run"], index.meta
    try:
        embedder = load(place, meta["checkpoint"], meta["space"], accelerator, meta["precision"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; run=PATH says where the network of {index.folder} is") from error
    if embedder.fingerprint != meta["fingerprint"]:
        raise ValueError(
            f"run={place} is not, or no longer, the network of {index.folder} ({meta['trained']}, {meta['space']}): "
            "give another run, or embed the images again"
        )
    return embedder


def exactly(index: Index) -> Search:
    """The search that misses nothing."""
    gallery = torch.from_numpy(index.vectors)
    return lambda query, k, own: search(query, gallery, k, own)


def find(
    indices: Sequence[Index], queries: Iterable[Queries], k: int, searches: Sequence[Search] | None = None
) -> Iterator[Result]:
    """For each query the `k` most similar images, most similar first, of equals the earlier index's.

    Args:
        searches: of each index how it is searched; None: `exactly`.

    Raises:
        ValueError: the indices have fewer than `k`.
    """
    searches = searches or [exactly(index) for index in indices]
    for part in queries:
        most = sum(map(len, indices)) - (part.own is not None)
        if k > most:
            raise ValueError(f"k={k}: there are {most} images to find, choose 1 to {most}")
        found = []
        for number, (index, nearest) in enumerate(zip(indices, searches, strict=True)):
            least = min(k, len(index) - (part.own is not None))
            values, rows = nearest(torch.from_numpy(part.vectors), least, part.own)
            found.append((values, torch.full_like(rows, number), rows))
        yield from _merge(indices, part, found, k)


def _merge(
    indices: Sequence[Index], queries: Queries, found: Sequence[tuple[Tensor, Tensor, Tensor]], k: int
) -> Iterator[Result]:
    """Of what was found in each index, similarities, its number and rows `(Q, k')`, the `k` most similar."""
    values, numbers, rows = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    numbers, rows = numbers.gather(1, order), rows.gather(1, order)
    for place, (name, opened) in enumerate(zip(queries.names, queries.images, strict=True)):
        columns = (column[place, :k].tolist() for column in (values, numbers, rows))
        hits = [Hit(value, indices[number], row) for value, number, row in zip(*columns, strict=True)]
        yield Result(name, opened, hits)
