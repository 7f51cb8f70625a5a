"""The pass between epochs on a real module and store: what a method gets, and what becomes of its companions."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from src.backbones.head import Head
from src.backbones.resnet import resnet18
from src.callbacks.refresh import Refresh, _before_last_relu
from src.datamodules.base import StoreDataModule
from src.methods.base import Extract, Method
from src.module import EmbeddingModule
from src.schedules import MultiStep
from tests.conftest import datamodule_options, small_store


class Pairs(Method):
    """Pairs every image with a random other and keeps what it was given."""

    restarts = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.features: list[Tensor] = []
        self.companions: list[Tensor] = []
        self.steps: list[tuple[int, Tensor, Tensor]] = []

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor | None:
        features, embeddings = extract()
        self.features.append(features)
        assert embeddings.shape == (len(features), 8)
        companions = torch.stack([torch.randperm(len(features), generator=generator) for _ in range(3)], 1)
        self.companions.append(companions)
        return companions

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.steps.append((len(self.companions) - 1, embeddings.detach().clone(), index.clone()))
        return {"loss": (embeddings * self.weight).sum() + 0 * torch.rand(()), "draw": torch.rand(())}


class Buffers(pl.Callback):
    """What the optimizer remembers of the method's parameters when an epoch has begun."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(pl_module.method.weight in trainer.optimizers[0].state)


class Views(pl.Callback):
    """The images that the network was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["views"].clone())


def make_module(method: Method) -> EmbeddingModule:
    network = resnet18(8)
    make_optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    head = Head(network.num_features, 8)
    return EmbeddingModule(network, head, method, make_optimizer, MultiStep([], [], 0, "epochs"), seed=0)


def train(
    folder: Path,
    method: Method,
    epochs: int,
    *callbacks: pl.Callback,
    resume: Path | None = None,
    precision: Any = "32-true",
) -> pl.Trainer:
    small_store(folder / "store")
    torch.manual_seed(0)
    module = make_module(method)
    datamodule = StoreDataModule(**datamodule_options(folder))
    datamodule.setup()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        callbacks=[Refresh(0), *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    return trainer


def test_companions_decide_what_the_network_sees(tmp_path: Path) -> None:
    method, buffers, views = Pairs(), Buffers(), Views()
    trainer = train(tmp_path, method, 2, buffers, views)
    images = trainer.datamodule.store.splits["train"].images  # type: ignore[attr-defined]
    assert len(method.companions) == 2
    assert not torch.equal(*method.companions), "every epoch draws its own"
    assert len(method.steps) == 10
    for (epoch, embeddings, index), shown in zip(method.steps, views.seen, strict=True):
        assert embeddings.shape == (12, 8), "three views of four places"
        places = (method.companions[epoch][:, 0].view(1, -1) == index.view(-1, 1)).nonzero()[:, 1]
        sources = method.companions[epoch][places].T.flatten()
        assert torch.equal(shown.permute(0, 2, 3, 1), images[sources].float())
    assert buffers.seen == [False, False], "momentum starts anew with the parameters"
    assert 0 < trainer.callback_metrics["train/refresh_s"] < 60
    (refresh,) = (callback for callback in trainer.callbacks if isinstance(callback, Refresh))  # type: ignore[attr-defined]
    assert refresh.companions is None, "an epoch's own"


def test_features_are_clean_in_eval_mode_and_in_order(tmp_path: Path) -> None:
    method = Pairs()
    trainer = train(tmp_path, method, 1)
    torch.manual_seed(0)
    untrained = make_module(Pairs()).eval()
    images = trainer.datamodule.store.splits["train"].images  # type: ignore[attr-defined]
    with torch.no_grad():
        features, _ = untrained(images.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(method.features[0], normalize(features, dim=1), rtol=1e-4, atol=1e-5)
    module: Any = trainer.lightning_module
    assert all(part.training for part in module.modules()), "and training goes on in train mode"
    assert not method.features[0].requires_grad


def test_features_that_are_not_finite_are_handed_to_no_method(tmp_path: Path) -> None:
    class Broken(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            next(pl_module.backbone.parameters()).data[0] = torch.nan

    method = Pairs()
    with pytest.raises(FloatingPointError, match="unit features are not finite"):
        train(tmp_path, method, 1, Broken())
    assert not method.features


def test_features_are_in_float32_whatever_the_network_computes_in(tmp_path: Path) -> None:
    found: list[Tensor] = []

    class Looking(Pairs):
        def on_epoch_start(self, extract: Extract, generator: Generator) -> None:
            for kind in ("unit", "pooled", "raw"):
                found.extend(extract(kind))

    train(tmp_path, Looking(), 1, precision="bf16-mixed")
    assert {part.dtype for part in found} == {torch.float32}
    assert len(found) == 6


def test_the_seconds_of_a_pass_are_kept_within_its_epoch() -> None:
    first, second = Refresh(0), Refresh(0)
    first.seconds, first.order = 3.5, torch.arange(4)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict() == {"companions": None, "order": first.order, "seconds": 3.5}


def test_a_resumed_run_draws_what_the_whole_run_drew(tmp_path: Path) -> None:
    whole, rest = Pairs(), Pairs()
    train(tmp_path, whole, 2)
    train(tmp_path, Pairs(), 1).save_checkpoint(tmp_path / "one.ckpt")
    train(tmp_path, rest, 2, resume=tmp_path / "one.ckpt")
    assert torch.equal(rest.companions[0], whole.companions[1])
    assert torch.equal(rest.features[0], whole.features[1])
    for (_, embeddings, index), (_, again, index_again) in zip(whole.steps[5:], rest.steps, strict=True):
        assert torch.equal(index, index_again)
        assert torch.equal(embeddings, again)


class Raw(Method):
    """Keeps the raw features, and those of unit norm."""

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor | None:
        self.raw, self.pooled = extract("raw")[0], extract()[0]
        return None

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": embeddings.sum()}


def test_raw_features_are_of_any_norm_and_before_the_last_relu(tmp_path: Path) -> None:
    method = Raw()
    trainer = train(tmp_path, method, 1)
    torch.manual_seed(0)
    untrained = resnet18(8).eval()
    images = trainer.datamodule.store.splits["train"].images  # type: ignore[attr-defined]
    last: Any = untrained.stages[-1][-1]  # type: ignore[index]
    with torch.no_grad():
        before = untrained.stages[:-1](untrained.stem(images.permute(0, 3, 1, 2).float()))
        before = untrained.stages[-1][0](before)  # type: ignore[index]
        residual = last.bn2(last.conv2(torch.relu(last.bn1(last.conv1(before))))) + before
    torch.testing.assert_close(method.raw, residual.mean((2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.pooled, normalize(residual.relu().mean((2, 3)), dim=1), rtol=1e-4, atol=1e-5)
    assert method.raw.min() < 0
    module: Any = trainer.lightning_module
    assert not module.backbone.last_relu._forward_pre_hooks, "nobody looks any more"


def test_networks_without_a_last_relu_give_their_pooled_features(tmp_path: Path) -> None:
    with _before_last_relu(nn.Linear(2, 2)) as found:
        assert found == []


class Single(Method):
    views = 1

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        assert len(embeddings) == len(index)
        return {"loss": embeddings.sum()}


def test_a_method_may_ask_for_one_view_and_for_no_pass(tmp_path: Path) -> None:
    views = Views()
    trainer = train(tmp_path, Single(), 1, views)
    assert [len(shown) for shown in views.seen] == [4] * 5
    assert "train/refresh_s" not in trainer.callback_metrics


class Ordered(Single):
    """Says which places its batches have, and keeps those it got."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Tensor] = []
        self.seen: list[list[int]] = []

    def order(self, extract: Extract, generator: Generator, batch: int) -> Tensor | None:
        assert batch == 4
        features, _ = extract("pooled")
        assert not torch.allclose(features.norm(dim=1), torch.ones(20)), "of any norm"
        self.orders.append(torch.randint(20, (12,), generator=generator))
        return self.orders[-1]

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.seen.append(index.tolist())
        return super().forward(embeddings, index)


def test_a_method_may_say_which_places_its_batches_have(tmp_path: Path) -> None:
    method = Ordered()
    train(tmp_path, method, 2)
    assert not torch.equal(*method.orders)
    expected = [batch.tolist() for order in method.orders for batch in order.split(4)]
    assert method.seen == expected
