"""Between epochs: what a method makes of all the training images, as the network sees them then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from src.callbacks.progress import Progress
from src.module import check_finite
from src.running.distributed import broadcast_buffers, gather_unique, of_rank_0


class Refresh(pl.Callback):
    """Calls the method's `on_epoch_start` and `order`, and hands what they say to the datamodule.

    Logs the time it takes as `train/refresh_s`, apart from training. What it draws depends on seed and epoch alone, so
    a resumed run goes on as the whole run would have. A checkpoint within an epoch has them both, since what follows
    from the network as it was at the epoch's start could not be found again.

    Args:
        seed: of what it draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.companions: Tensor | None = None  # of the epoch that is being trained
        self.order: Tensor | None = None
        self.seconds = 0.0  # that its passes took, with all that the method made of them

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            self._pair(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        method: Any = pl_module.method
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def look(kind: str = "unit") -> tuple[Tensor, Tensor]:
            if kind not in found:
                found[kind] = extract(trainer, pl_module, kind)
            return found[kind]

        started = time.perf_counter()
        key = np.random.SeedSequence([self.seed, trainer.current_epoch])
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        companions = method.on_epoch_start(look, generator)
        batch = trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        self.companions, self.order = of_rank_0(companions, method.order(look, generator, batch))
        broadcast_buffers(method)  # such as labels of clusters
        self._pair(trainer, pl_module)
        if method.restarts:
            for parameter in method.parameters():
                for optimizer in trainer.optimizers:
                    optimizer.state.pop(parameter, None)
        self.seconds = time.perf_counter() - started if found else 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.seconds:
            pl_module.log("train/refresh_s", self.seconds, batch_size=1)
        self.companions = self.order = None

    def _pair(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        method: Any = pl_module.method
        datamodule.pair(self.companions, method.views, self.order)

    def state_dict(self) -> dict[str, Any]:
        return {"companions": self.companions, "order": self.order, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.companions, self.order = state_dict["companions"], state_dict["order"]
        self.seconds = state_dict["seconds"]


@torch.no_grad()
def extract(trainer: pl.Trainer, module: pl.LightningModule, kind: str) -> tuple[Tensor, Tensor]:
    """One pass of the network over the clean training images, shared among ranks, in eval mode.

    Returns:
        Features `(N, F)`, `unit`, `pooled` or `raw` (see `src.methods.base.Extract`), and unit-norm embeddings
        `(N, D)`, float32, on every rank, in the order of the images.

    Raises:
        FloatingPointError: features are not finite, and nothing can be made of them.
    """
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    broadcast_buffers(module)
    training = [part.training for part in module.modules()]
    module.eval()
    found = []
    loader = datamodule.clean_dataloader()
    bar = trainer.progress_bar_callback
    for batch in bar.track(loader, len(loader), "Features") if isinstance(bar, Progress) else loader:
        moved = {name: column.to(module.device, non_blocking=True) for name, column in batch.items()}
        batch = datamodule.clean(moved, "train")
        with (
            trainer.precision_plugin.forward_context(),
            _before_last_relu(module.backbone if kind == "raw" else None) as before,
        ):
            features, embeddings = module(batch["image"])
        features = (before or [features])[-1].float()
        features = functional.normalize(features, dim=1) if kind == "unit" else features
        found.append((batch["index"], features, embeddings.float()))
    for part, was_training in zip(module.modules(), training, strict=True):
        part.training = was_training
    _, features, embeddings = gather_unique(*(torch.cat(column) for column in zip(*found, strict=True)))
    check_finite(kind, features)
    return features, embeddings


@contextmanager
def _before_last_relu(backbone: Any) -> Iterator[list[Tensor]]:
    """Gathers what the backbone's `last_relu` is given, averaged over the map: `(B, F)` a call; nothing if it has none.

    One layer may be called several times in a pass: the last is the last.
    """
    found: list[Tensor] = []
    relu = getattr(backbone, "last_relu", None)
    if relu is None:
        yield found
        return
    handle = relu.register_forward_pre_hook(lambda layer, inputs: found.append(backbone.average(inputs[0])))
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code may not see the hook
            yield found
    finally:
        handle.remove()
