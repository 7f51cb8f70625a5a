"""Copies hidden among photographs, and which of them are found: `python -m benchmarks.duplicates RUN FOLDER`."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import heading
from src.datamodules.images import find_images
from src.embedder import load
from src.indexing.building import build
from src.indexing.duplicates import ALTERATIONS, choose_threshold, similar_pairs
from src.indexing.index import Index
from src.indexing.sources import find_source

COPIES = 200  # a quarter of each kind


def main() -> None:
    if len(sys.argv) != 3:
        print("left out: it takes a run and a folder of photographs, python -m benchmarks.duplicates RUN FOLDER")
        return
    run, photographs = map(Path, sys.argv[1:])
    paths = find_images(photographs.resolve())
    kinds = list(ALTERATIONS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for number, path in enumerate(paths):
            (folder / f"{number}{path.suffix}").symlink_to(path)
        rows = np.random.default_rng(1).choice(len(paths), COPIES, replace=False)
        for place, number in enumerate(rows.tolist()):
            kind = place % len(kinds)
            with Image.open(paths[number]) as image:
                ALTERATIONS[kinds[kind]](image.convert("RGB")).save(folder / f"{number}_{kind}.jpg", quality=92)
        title = f"{COPIES} altered copies hidden among {len(paths):,} photographs"
        heading(title, ("recall: copies found", "precision: of the pairs with a copy, those of one photograph"))
        for space in ("embedding", "pooled"):
            embedder = load(run, space=space)
            build(embedder, find_source(str(folder)), Path(name) / space)
            index = Index(Path(name) / space)
            chosen = choose_threshold(index, embedder)
            score(index, chosen.value, kinds, space)


def score(index: Index, threshold: float, kinds: list[str], space: str) -> None:
    """Recall: the copies found with their original. Precision: of the pairs with a copy those of one photograph."""
    _, one, other = similar_pairs(index.vectors, None, threshold)
    parts = [Path(index.find(row).name).stem.split("_") for row in range(len(index))]
    right, wrong, natural = np.zeros(len(kinds)), np.zeros(len(kinds)), 0
    for first, second in zip(one.tolist(), other.tolist(), strict=True):
        copies = [part for part in (parts[first], parts[second]) if len(part) == 2]
        natural += not copies
        for _, kind in copies:
            if parts[first][0] == parts[second][0]:
                right[int(kind)] += 1
            else:
                wrong[int(kind)] += 1
    for number, kind in enumerate(kinds):
        found = 100 * right[number] / (COPIES / len(kinds))
        pairs = right[number] + wrong[number]
        precision = f"{100 * right[number] / pairs:.1f}%" if pairs else "-"
        print(f"| {space}, {kind} | {found:.1f}% | {precision} of {pairs:.0f} |", flush=True)
    print(f"| {space}, threshold {threshold:.4f} | | {natural} pairs of photographs besides |", flush=True)


if __name__ == "__main__":
    main()
