"""Search in 1,000,000 vectors on disk, against faiss's flat index, and opening them: `python -m benchmarks.search`."""

import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch

from benchmarks.timing import heading, medians, report
from src.indexing.approximate import find
from src.indexing.index import Index
from src.indexing.searching import Queries
from src.indexing.sources import Entry
from src.indexing.writer import Writer
from src.vectors.neighbors import search

COUNT, DIM, K, BLOCK = 1_000_000, 128, 10, 50_000


def write_index(folder: Path) -> Index:
    """An index of points around 10,000 directions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10_000, DIM)).astype(np.float32)
    said = ("run", "checkpoint", "trained", "space", "precision", "fingerprint", "images", "root")
    with Writer(folder, {"format": 1, "dim": DIM} | dict.fromkeys(said, "benchmark")) as writer:
        for start in range(0, COUNT, BLOCK):
            noise = rng.normal(size=(BLOCK, DIM)).astype(np.float32)
            points = centres[rng.integers(0, len(centres), BLOCK)] + 0.7 * noise
            names = [(Entry(f"folder/{row}.jpg", 1, 1), f"{row:032}") for row in range(start, start + BLOCK)]
            writer.append(names, points / np.linalg.norm(points, axis=1, keepdims=True), [])
        writer.finish()
    return Index(folder)


def main() -> None:
    heading(f"Search in an index of {COUNT:,} images, {DIM} dimensions, float32 on disk, k = {K}")
    with tempfile.TemporaryDirectory() as name:
        index = write_index(Path(name) / "index")
        gallery = torch.from_numpy(index.vectors)
        flat = faiss.IndexFlatIP(DIM)
        flat.add(index.vectors)
        asked = gallery[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:1000]]
        for count in (1, 1000):
            query = asked[:count]
            mine, theirs = search(query, gallery, K), flat.search(query.numpy(), K)
            torch.testing.assert_close(mine[0], torch.from_numpy(theirs[0]), rtol=0, atol=1e-5)
            contenders = {
                "ours": lambda query=query: search(query, gallery, K),
                "faiss, in memory": lambda query=query: flat.search(query.numpy(), K),
            }
            report(f"{count:,} quer{'y' if count == 1 else 'ies'}", medians(contenders, rounds=5 if count == 1 else 3))
        part = Queries([""] * len(asked), [None] * len(asked), asked.numpy(), None)
        cache = Path(name) / "cache"
        list(find([index], [part], K, cache))  # made once
        nearly = {"ours": lambda: list(find([index], [part], K, cache))}
        both = nearly | {"exact": lambda: search(asked, gallery, K)}
        report("1,000 queries, approximate, with measuring what it misses", medians(both, rounds=1))
        report("opening it", medians({"ours": lambda: Index(Path(name) / "index").find(COUNT - 1)}, rounds=5))


if __name__ == "__main__":
    main()
