"""Images to hold an export to: those of the run's dataset, of which none is decoded anew, or random ones."""

from collections.abc import Iterator

import numpy as np
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig

from src.datamodules.base import StoreDataModule

Pixels = NDArray[np.uint8]


def open_store(config: DictConfig, cache_dir: str) -> StoreDataModule:
    """The dataset of a run, whose store is in `cache_dir`.

    Raises:
        FileNotFoundError: it is not at hand; the message says what to do.
        ValueError: it is damaged.
    """
    name = config.dataset.name
    remedy = f"python -m src.prepare dataset={name} makes it, with the other settings of the run's dataset, if any"
    try:
        make = instantiate(config.dataset, cache_dir=cache_dir, _partial_=True)
        datamodule: StoreDataModule = make(augmentation=None)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"the images of dataset={name} are not at hand ({error}); {remedy}") from error
    if not (datamodule.path / "meta.json").exists():
        raise FileNotFoundError(f"the images of dataset={name} are not at hand (no store {datamodule.path}); {remedy}")
    datamodule.setup()
    return datamodule


def draw(datamodule: StoreDataModule | None, count: int, size: int) -> Pixels:
    """`(count, S, S, 3)`: test images as the network sees them, drawn evenly from the classes, or random pixels.

    There are fewer where the test set has.
    """
    if datamodule is None:
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images: Pixels = datamodule.query_images(datamodule.draw_queries(count, seed=0)).numpy()
    return images


def batches(datamodule: StoreDataModule, which: str, size: int) -> Iterator[Pixels]:
    """All images of the `query` or of the `gallery`, as the network sees them, `size` at once."""
    rows, take = len(datamodule.query_labels), datamodule.query_images
    if which == "gallery":
        rows, take = len(datamodule.gallery_rows), datamodule.gallery_images
    for part in torch.arange(rows).split(size):
        yield take(part).numpy()
