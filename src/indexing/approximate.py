"""An approximate search by faiss for indices of many millions, its misses measured: an inverted file of bytes.

The compressed copy lies in the cache of the machine that made it, never in the index: faiss trusts what it reads.
"""

import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.indexing import searching
from src.indexing.index import VECTORS, Index
from src.indexing.progress import showing
from src.indexing.searching import Queries, Result
from src.vectors.neighbors import in_parts

WANTED = 0.95  # of the true neighbours
ASKED = 200  # images of the index, whose neighbours are found both ways
AGAIN = 4  # times k candidates that are compared again exactly
BLOCK = 2**17  # vectors added at once
GATHERED = 2**26  # numbers of candidates that are compared again at once, 256 MiB
PER_LIST = 64  # vectors a list is trained on


def find(indices: Sequence[Index], queries: Iterable[Queries], k: int, cache: Path) -> Iterator[Result]:
    """As `searching.find`, but some of the nearest may be missed: how many is measured, and said on standard error.

    Raises:
        ImportError: faiss is not installed.
    """
    copies = [_Copy(index, k, cache / "approximate") for index in indices]
    return searching.find(indices, queries, k, [copy.search for copy in copies])


class _Copy:
    """A compressed copy of an index, opened or made, set to find `WANTED` of the `k` nearest."""

    def __init__(self, index: Index, k: int, cache: Path) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("approximate=true needs the package faiss: pip install '.[approximate]'") from error
        if k >= len(index):
            raise ValueError(f"k={k}: {index.folder} has {len(index)} images, choose less")
        self.index, found = index, (index.folder / VECTORS).resolve().stat()
        key = f"{(index.folder / VECTORS).resolve()} {found.st_size} {found.st_mtime_ns}"
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.faiss"
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            if path.exists():
                self.lists: Any = faiss.read_index(str(path))
            else:
                self.lists = _compress(faiss, index.vectors, str(index.folder))
                cache.mkdir(parents=True, exist_ok=True)
                faiss.write_index(self.lists, str(partial))
                os.replace(partial, path)
        except RuntimeError as error:  # faiss's, of a full disk or a damaged file
            raise OSError(f"{path}: {str(error).splitlines()[0]}: make room, or delete it") from error
        finally:
            partial.unlink(missing_ok=True)
        self._look_into_enough(k)

    def search(self, query: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Similarities and rows `(Q, k)`: of `AGAIN` times as many candidates those that are nearest in float32.

        Where the lists looked into have fewer than k images, all are looked into.
        """
        if len(query) > (at_once := max(1, GATHERED // ((AGAIN * k + 1) * query.shape[1]))):
            return in_parts(lambda some, mine: self.search(some, k, mine), query, own, at_once)
        values, rows = self._search(query, k, own)
        few = values[:, -1].isinf()
        if few.any():
            usual, self.lists.nprobe = self.lists.nprobe, self.lists.nlist
            values[few], rows[few] = self._search(query[few], k, None if own is None else own[few])
            self.lists.nprobe = usual
        return values, rows

    def _search(self, query: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
        _, rows = self.lists.search(query.numpy(), AGAIN * k + 1)
        similarity = np.einsum("qkd,qd->qk", self.index.vectors[np.maximum(rows, 0)], query.numpy())
        similarity[rows < 0] = -math.inf  # there were fewer candidates
        if own is not None:
            similarity[rows == own.numpy()[:, None]] = -math.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        values, rows = (np.take_along_axis(column, order, 1) for column in (similarity, rows))
        return torch.from_numpy(values), torch.from_numpy(rows)

    def _look_into_enough(self, k: int) -> None:
        """Look into twice as many lists until `WANTED` of the true neighbours are found, or all are looked into."""
        rows = np.random.default_rng(0).choice(len(self.index), min(ASKED, len(self.index)), replace=False)
        rows.sort()
        asked, own = torch.from_numpy(self.index.vectors[rows]), torch.from_numpy(rows)
        truth = searching.exactly(self.index)(asked, k, own)[0]
        self.lists.nprobe = 1
        while True:
            values, _ = self.search(asked, k, own)
            recall = float((values >= truth[:, -1:] - 1e-6).float().mean())
            if recall >= WANTED or self.lists.nprobe >= self.lists.nlist:
                break
            self.lists.nprobe = min(2 * self.lists.nprobe, self.lists.nlist)
        print(
            f"approximate: {100 * recall:.1f}% of the {k} true neighbours of {len(own)} images of {self.index.folder} "
            f"are found, looking into {self.lists.nprobe} of {self.lists.nlist} lists",
            file=sys.stderr,
        )


def _compress(faiss: Any, vectors: NDArray[np.float32], name: str) -> Any:
    """An inverted file of bytes, about 4 √N lists."""
    count = max(1, min(round(4 * math.sqrt(len(vectors))), len(vectors) // PER_LIST))
    lists = faiss.index_factory(vectors.shape[1], f"IVF{count},SQ8", faiss.METRIC_INNER_PRODUCT)
    rows = np.random.default_rng(0).choice(len(vectors), min(len(vectors), PER_LIST * count), replace=False)
    rows.sort()
    lists.train(vectors[rows])
    with showing(f"compressing {name}", len(vectors)) as report:
        for start in range(0, len(vectors), BLOCK):
            lists.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
            report(min(start + BLOCK, len(vectors)))
    return lists
