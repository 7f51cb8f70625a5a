"""The one LightningModule: views to embeddings to the method's loss."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from src.backbones.head import Head
from src.methods.base import Method
from src.running.distributed import broadcast_buffers

C = TypeVar("C", bound=pl.Callback)


def may_wait(trainer: pl.Trainer) -> bool:
    """Whether this training step is one, of every `log_every_n_steps` and the last of an epoch, that may read numbers.

    An accelerator has to be waited for to see a number, so everything that is shown, logged or checked keeps to these.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.is_last_batch or trainer.global_step % every == 0


def find_callback(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """The first of the trainer's callbacks that is of a kind, if there is one."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # type: ignore[attr-defined]


def seed_device(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for the CPU and `device` alone: to prepare all other kinds takes most of a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class EmbeddingModule(pl.LightningModule):
    """A network trained by a method that sees embeddings and indices, never labels.

    Args:
        backbone: images `(B, 3, H, W)` to pooled features `(B, F)`; has `num_features`.
        method: see `src.methods.base`.
        embedding_dim: D.
        optimizer: makes the optimizer of groups of parameters: the network's, and the method's own where it has any.
        milestones: epochs, rising, at which the learning rate changes.
        factors: for each milestone, what the initial learning rate is multiplied by from then on.
        seed: with the step it determines what the network and the method draw, so that a resumed run draws the same.
    """

    def __init__(
        self,
        backbone: nn.Module,
        method: Method,
        embedding_dim: int,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        milestones: Sequence[int],
        factors: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__()
        if len(milestones) != len(factors) or list(milestones) != sorted(milestones):
            raise ValueError(
                f"schedule: milestones {list(milestones)} must rise and have a factor each, got {list(factors)}"
            )
        self.backbone, self.method = backbone, method
        self.head = Head(int(backbone.num_features), embedding_dim)  # type: ignore[arg-type]
        self.make_optimizer, self.milestones, self.factors = optimizer, milestones, [1.0, *factors]
        self.seed = seed
        self.seen: list[tuple[Tensor, Tensor]] = []  # since the optimizer's last step

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, 3, H, W)` to pooled features `(B, F)` and unit-norm embeddings `(B, D)`."""
        features = self.backbone(images)
        return features, self.head(features)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """The `loss`, and detached its `terms`, the `features` `(VB, F)` and the `embeddings` `(VB, D)`.

        The terms are the method's, and with two views an image their `alignment`, 0 to 4 (Wang and Isola, ICML 2020).
        """
        seed_device(self.device, self.seed * 1_000_003 + self.global_step)
        features = self.backbone(batch["views"])
        embeddings = self.head(features) if self.method.unit_norm else self.head.project(features)
        with torch.autocast(self.device.type, enabled=False):  # the loss takes its products in float32
            terms = self.method(embeddings, batch["index"])
        detached = {name: term.detach() for name, term in terms.items()}
        made = {"features": features.detach(), "embeddings": embeddings.detach()}
        if len(embeddings) == 2 * len(batch["index"]):
            one, other = functional.normalize(made["embeddings"].float(), dim=1).chunk(2)
            detached["alignment"] = (one - other).square().sum(1).mean()
        self.seen.append((made["embeddings"], batch["index"]))
        return {"loss": terms["loss"], "terms": detached, **made}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, and what the method remembers of it: before any callback may write a checkpoint of the two."""
        super().optimizer_step(*args, **kwargs)
        for embeddings, index in self.seen:
            self.method.after_step(embeddings, index)
        self.seen.clear()

    def on_validation_epoch_start(self) -> None:
        broadcast_buffers(self)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """What the evaluation gathers of clean images: `index`, `label`, and of unit norm `embedding` and `pooled`."""
        features, embeddings = self(batch["image"])
        pooled = functional.normalize(features.float(), dim=1)
        return {"index": batch["index"], "label": batch["label"], "embedding": embeddings, "pooled": pooled}

    def configure_optimizers(self) -> Any:
        network = [parameter for part in (self.backbone, self.head) for parameter in part.parameters()]
        groups: list[dict[str, Any]] = [{"params": network}]
        if own := list(self.method.parameters()):
            groups.append({"params": own, **self.method.optimizer_options})
        optimizer = self.make_optimizer(groups)
        return [optimizer], [LambdaLR(optimizer, lambda epoch: self.factors[bisect_right(self.milestones, epoch)])]
