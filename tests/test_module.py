from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src.backbones.resnet import resnet18
from src.callbacks.steps import Steps
from src.methods.base import Method
from src.methods.invariant_spreading import InvariantSpreading, invariant_spreading_loss
from src.module import EmbeddingModule


def make(
    milestones: tuple[int, ...] = (2, 3), factors: tuple[float, ...] = (0.1, 0.01), **options: Any
) -> EmbeddingModule:
    torch.manual_seed(0)
    method = options.pop("method", None) or InvariantSpreading(0.1, "all", True, 0.5, "self")
    return EmbeddingModule(resnet18(8), method, 16, lambda p: torch.optim.SGD(p, lr=0.5), milestones, factors, 0)


def loader(batches: int = 1) -> DataLoader:
    views = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader([{"index": torch.arange(4), "views": views}] * batches, batch_size=None)  # type: ignore[arg-type]


def fit(
    module: EmbeddingModule, *callbacks: pl.Callback, epochs: int = 1, batches: int = 1, **options: Any
) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[Steps(), *callbacks],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(batches))
    return trainer


def test_features_beside_the_embedding() -> None:
    features, embedding = make()(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 64)
    assert embedding.shape == (2, 16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


class Spy(InvariantSpreading):
    """Keeps the embeddings it was given."""

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.seen, self.autocast = embeddings.detach(), torch.is_autocast_enabled("cpu")
        return super().forward(embeddings, index)


def test_the_loss_is_float32_under_autocast() -> None:
    module = make(method=Spy(0.1, "all", True, 0.5, "self"))
    trainer = fit(module, precision="bf16-mixed")
    spy = module.method
    assert isinstance(spy, Spy)
    assert not spy.autocast
    assert spy.seen.dtype == torch.float32
    exact = invariant_spreading_loss(spy.seen.double()).item()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(exact, rel=1e-6)


def test_schedule() -> None:
    rates = []

    class Rates(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(make(), Rates(), epochs=5)
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005])


@pytest.mark.parametrize(("milestones", "factors"), [((3, 2), (0.1, 0.1)), ((1, 2), (0.1,))])
def test_impossible_schedules_are_named(milestones: tuple[int, ...], factors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="schedule: milestones"):
        make(milestones, factors)


class Broken(Method):
    """Fails from its third step on."""

    steps = 0

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.steps += 1
        return {"loss": embeddings.sum() * (torch.nan if self.steps >= 3 else 1)}


@pytest.mark.parametrize("every", [1, 2, 50])
def test_a_loss_that_is_not_finite_stops_with_step_and_batch(every: int) -> None:
    """However seldom it is looked at, the first bad step is named, and no epoch ends unseen, nor does the training."""
    for steps in (-1, 4):
        with pytest.raises(FloatingPointError, match=r"nan at step 2 \(epoch 0, batch 2, images \[0, 1, 2, 3\]\)"):
            fit(make(method=Broken()), batches=5, log_every_n_steps=every, max_steps=steps)
