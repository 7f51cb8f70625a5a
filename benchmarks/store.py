"""Preparing 10,000 JPEGs, against a loop over Pillow, and reading the store back: `python -m benchmarks.store`."""

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.timing import heading, medians, report
from src.datamodules.images import decode_split, find_images
from src.datamodules.store import prepare_store, read_store

COUNT, SIZE, BATCH = 10_000, 256, 128


def write_photographs(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of about the size of Stanford Online Products' (400 x 300), crops of two photographs."""
    folder.mkdir()
    whole = load_sample_images().images
    for number in range(count):
        top, left = number % 127, number % 239
        Image.fromarray(whole[number % 2][top : top + 300, left : left + 400]).save(folder / f"{number:05}.jpg")
    return find_images(folder)


def plain(paths: list[Path]) -> np.ndarray:
    """What one would write: a loop."""
    images = np.empty((len(paths), SIZE, SIZE, 3), np.uint8)
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            images[number] = np.asarray(file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return images


def read(path: Path, forget: bool) -> Callable[[], None]:
    """An epoch of shuffled batches, with the file first put out of the page cache or left in it."""

    def epoch() -> None:
        if forget:
            with (path / "train_images.npy").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        images = read_store(path).splits["train"].images
        for rows in torch.randperm(len(images)).split(BATCH):
            images[rows]

    return epoch


def main() -> None:
    heading(f"The store: {COUNT:,} JPEGs of 400 x 300, kept as {SIZE} x {SIZE}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder / "photographs", COUNT)
        number = iter(range(100))

        def build(where: Path) -> dict[str, object]:
            with redirect_stdout(io.StringIO()):  # its progress bar
                decode_split(where, "train", paths, [0] * len(paths), SIZE, "bilinear", skip_broken=False)
                decode_split(where, "test", paths[:1], [0], SIZE, "bilinear", skip_broken=False)
            return {"classes": ["all"], "source": name}

        prepare_store(folder / "store", build)
        assert np.array_equal(read_store(folder / "store").splits["train"].images[:100].numpy(), plain(paths[:100]))
        contenders = {
            "ours": lambda: prepare_store(folder / f"store{next(number)}", build),
            "Pillow in a loop, into memory": lambda: plain(paths),
        }
        report("preparing", medians(contenders, rounds=1))
        epochs = {"ours, warm": read(folder / "store", False), "cold": read(folder / "store", True)}
        os.sync()
        report("reading an epoch of shuffled batches", medians(epochs, rounds=3))


if __name__ == "__main__":
    main()
