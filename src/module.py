"""The one LightningModule: views to embeddings to the method's loss."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from src.backbones.average import Average
from src.backbones.captured import Captured
from src.backbones.head import Head
from src.backbones.mirror import features_of
from src.backbones.whitening import Whitening
from src.methods.base import Method
from src.running.distributed import broadcast_buffers
from src.schedules import Schedule

C = TypeVar("C", bound=pl.Callback)


def may_wait(trainer: pl.Trainer) -> bool:
    """Whether this training step is one, of every `log_every_n_steps` and the last of an epoch, that may read numbers.

    An accelerator has to be waited for to see a number, so everything that is shown, logged or checked keeps to these.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.is_last_batch or trainer.global_step % every == 0


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """The optimizer's steps of an epoch; an epoch's last takes what batches are left."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def find_callback(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """The first of the trainer's callbacks that is of a kind, if there is one."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # type: ignore[attr-defined]


def check_finite(kind: str, *features: Tensor) -> None:
    """Raise a FloatingPointError where features or embeddings of a `kind` are not finite: nothing is made of them."""
    if not all(some.isfinite().all() for some in features):
        raise FloatingPointError(f"{kind} features are not finite: lower optimizer.lr, or see the weights")


def seed_device(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for the CPU and `device` alone: to prepare all other kinds takes most of a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class EmbeddingModule(pl.LightningModule):
    """A network trained by a method that sees embeddings and indices, never labels.

    Args:
        backbone: images `(B, 3, H, W)` to pooled features `(B, F)`.
        head: those to embeddings `(B, D)`.
        method: see `src.methods.base`.
        optimizer: makes the optimizer of groups of parameters: the network's, and the method's own where it has any.
        schedule: what the learning rate is multiplied by at each step.
        seed: with the step it determines what the network and the method draw, so that a resumed run draws the same.
        decay: whether weight decay shrinks all parameters, or only weights: not those of norms, nor biases.
        ema: at each step, what an average of the weights keeps of itself; that is evaluated then. None: no average.
        microbatch: views the network sees at once in training; the step is the same (`in_parts`). None: all of them.
        graph: whether it trains by CUDA graphs (`Captured`); the step is the same.
        whitening: is evaluated in the head's place. None: the head is.
        mirror: whether the features that are evaluated are the mean of an image's and of its mirror image's.

    Attributes:
        average: what is evaluated in the network's place, where there is one.
        teacher: what the method learns from besides, where it asks for one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        method: Method,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        schedule: Schedule,
        seed: int,
        decay: Literal["all", "weights"] = "all",
        ema: float | None = None,
        microbatch: int | None = None,
        graph: bool = False,
        whitening: Whitening | None = None,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.method = backbone, head, method
        self.make_optimizer, self.schedule, self.decay = optimizer, schedule, decay
        self.seed, self.microbatch, self.whitening, self.mirror = seed, microbatch, whitening, mirror
        self.captured = Captured(backbone) if graph else None
        self.average = None if ema is None else Average(backbone, head, ema)
        taught = method.teacher_decay
        self.teacher = None if taught is None else Average(backbone, head, taught, method.teacher_evaluates)
        self.seen: list[tuple[Tensor, Tensor]] = []  # since the optimizer's last step

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, 3, H, W)` to pooled features `(B, F)` and unit-norm embeddings `(B, D)`, of the live network."""
        features = self.backbone(images)
        return features, self.head(features)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """The `loss`, and detached its `terms`, the `features` `(VB, F)` and the `embeddings` `(VB, D)`.

        The terms are the method's, and with two views an image their `alignment`, 0 to 4 (Wang and Isola, ICML 2020).
        """
        views = batch["views"]
        if self.captured:
            self.captured.prepare(views)
        seed = self.seed * 1_000_003 + self.global_step
        seed_device(self.device, seed + 999_983 * self.global_rank)  # a network draws for its rank's images alone
        features = self.captured(views) if self.captured else in_parts(self.backbone, views, self.microbatch)
        embeddings = self.head(features) if self.method.unit_norm else self.head.project(features)
        given: dict[str, Any] = {}
        if self.teacher:
            taught = self.teacher(views, self.method.unit_norm, self.microbatch)
            given = {"features": features, "teacher": taught}
        seed_device(self.device, seed)  # and a method for all images: on every rank the same
        with torch.autocast(self.device.type, enabled=False):  # the loss takes its products in float32
            terms = self.method(embeddings, batch["index"], **given)
        detached = {name: term.detach() for name, term in terms.items()}
        made = {"features": features.detach(), "embeddings": embeddings.detach()}
        if len(embeddings) == 2 * len(batch["index"]):
            one, other = functional.normalize(made["embeddings"], dim=1).chunk(2)
            detached["alignment"] = (one - other).square().sum(1).mean()
        self.seen.append((made["embeddings"], batch["index"]))
        return {"loss": terms["loss"], "terms": detached, **made}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, and what averages and method remember of it: before any callback may write a checkpoint of them."""
        super().optimizer_step(*args, **kwargs)
        for follower in (self.average, self.teacher):
            if follower:
                follower.follow(self.backbone, self.head)
        for embeddings, index in self.seen:
            self.method.after_step(embeddings, index)
        self.seen.clear()

    def on_validation_epoch_start(self) -> None:
        broadcast_buffers(self)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """What the evaluation gathers of clean images: `index`, `label`, pooled `features` `(B, F)`, float32, averaged
        and mirrored as the run has it, and, unless a whitening makes it of those, the unit-norm `embedding` `(B, D)`.
        """
        network = self.average or self
        features = features_of(network.backbone, batch["image"], self.mirror)
        found = {"index": batch["index"], "label": batch["label"], "features": features.float()}
        return found if self.whitening else found | {"embedding": network.head(features)}

    def configure_optimizers(self) -> Any:
        groups, steps = self.parameter_groups(), self._steps_per_epoch()
        rates = [(lambda step: 1.0) if "lr" in group else (lambda step: self.schedule(step, steps)) for group in groups]
        optimizer = self.make_optimizer(groups)
        rate = LambdaLR(optimizer, rates)
        return [optimizer], [{"scheduler": rate, "interval": "step"}]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: of the network, and of the method, each in two where weight decay spares some."""
        network = [*self.backbone.parameters(), *self.head.parameters()]
        groups = []
        for parameters, options in ((network, {}), ([*self.method.parameters()], self.method.optimizer_options)):
            spared = [parameter for parameter in parameters if parameter.ndim < 2 and self.decay == "weights"]
            rest = [parameter for parameter in parameters if parameter.ndim >= 2 or self.decay == "all"]
            groups += [{"params": rest, **options}, {"params": spared, **options, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["lr_schedulers"][0]["last_epoch"] != checkpoint["global_step"]:
            raise ValueError(
                "the checkpoint is of an earlier version, whose learning rates counted epochs: it can be scored and "
                "used, but not gone on with"
            )

    def _steps_per_epoch(self) -> int:
        self.trainer.fit_loop.setup_data()
        return max(1, steps_per_epoch(self.trainer))


def in_parts(network: nn.Module, images: Tensor, at_once: int | None) -> Tensor:
    """What `network` makes of images, `at_once` of them at a time, holding what the gradient needs for so many only.

    Of the others only what comes out is kept; when the gradient arrives, each part is computed again (Gao et al., 2021,
    "Scaling deep contrastive learning batch size under memory limited setup"). So the loss is of all, and so is its
    gradient; batch norm alone sees a part at a time, and its running statistics are not updated twice.
    """
    if at_once is None or len(images) <= at_once:
        return network(images)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(network)

    parts = [checkpoint(network, part, use_reentrant=False, context_fn=contexts) for part in images.split(at_once)]
    return torch.cat(parts)


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch norm's running statistics stay as they are."""
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
