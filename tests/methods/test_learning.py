"""Methods with a teacher learn: a few hundred steps on real digits, with everything around them as in a run."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Generator, nn

from src.augmentations.random import Augmentation, RandomCrop
from src.backbones.head import Head
from src.callbacks.refresh import Refresh
from src.callbacks.steps import Steps
from src.datamodules.base import StoreDataModule
from src.datamodules.store import prepare_store, write_split
from src.methods.base import Method, TrainingSet
from src.methods.byol import BYOL
from src.methods.stml import STML
from src.module import EmbeddingModule
from src.schedules import MultiStep
from tests.conftest import datamodule_options

TRAIN = 1437


class Small(nn.Sequential):
    """Two convolutions with batch norm."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )


def build(folder: Path) -> dict[str, Any]:
    """Scikit-learn's digits, 8 pixels a side, each somewhere in a black square of 16."""
    digits = load_digits()
    images = torch.zeros(len(digits.images), 16, 16, 3, dtype=torch.uint8)
    places = torch.randint(2, 7, (len(images), 2), generator=Generator().manual_seed(0)).tolist()
    for image, digit, (top, left) in zip(images, digits.images, places, strict=True):
        image[top : top + 8, left : left + 8] = torch.tensor(15 * digit).byte().unsqueeze(2)
    for split, rows in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        write_split(folder, split, zip(images[rows].numpy(), digits.target[rows], strict=True))
    return {"classes": [str(digit) for digit in range(10)], "source": "scikit-learn"}


@torch.no_grad()
def neighbour_accuracy(module: EmbeddingModule, data: StoreDataModule) -> float:
    """In percent, of the test images among the training images: the most frequent label of the five nearest."""
    module.eval()
    assert data.store is not None
    found = []
    for name in ("train", "test"):
        split = data.store.splits[name]
        found.append((module(data.clean({"image": split.images[:]}, name)["image"])[1], split.labels))
    module.train()
    (gallery, labels), (query, expected) = found
    nearest = labels[(query @ gallery.T).topk(5).indices]
    return 100 * (nearest.mode(1).values == expected).double().mean().item()


def learn(folder: Path, method: Method, batch: int, epochs: int, head: dict[str, Any]) -> tuple[float, float]:
    """The accuracy of the untrained network, and of the trained one."""
    prepare_store(folder / "store", build)
    changes: dict[str, Any] = {
        "image_size": 12,
        "batch_size": batch,
        "augmentation": Augmentation(12, crop=RandomCrop(12)),
    }
    data = StoreDataModule(**datamodule_options(folder, **changes, std=[255.0] * 3))
    data.setup()
    torch.manual_seed(0)
    backbone = Small()
    optimizer = partial(torch.optim.AdamW, lr=0.003)
    module = EmbeddingModule(backbone, Head(64, 32, **head), method, optimizer, MultiStep([], [], 0, "epochs"), seed=0)
    method.setup(TrainingSet(TRAIN, 32, pretrained=False, labels=None, num_features=64))
    before = neighbour_accuracy(module, data)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[Refresh(0), Steps()],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    return before, neighbour_accuracy(module, data)


@pytest.mark.parametrize(
    ("make", "batch", "epochs", "head", "margin"),
    [
        (lambda: STML(1.0, 1.0, 5, 0.9, 64), 60, 10, {"orthogonal": True}, 10),
        (lambda: BYOL(64, 0.9), 64, 10, {"hidden": [64]}, 10),
    ],
    ids=["stml", "byol"],
)
def test_a_trained_network_beats_the_untrained(
    tmp_path: Path, make: Any, batch: int, epochs: int, head: dict[str, Any], margin: float
) -> None:
    before, after = learn(tmp_path, make(), batch, epochs, head)
    assert after > before + margin
