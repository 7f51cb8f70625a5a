"""Between epochs: the method looks at all the training images and says what the next epoch is made of."""

import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from src.callbacks.progress import Progress
from src.running.distributed import broadcast_buffers, gather_unique


class Refresh(pl.Callback):
    """Calls the method's `on_epoch_start` and hands its companions to the datamodule.

    Logs the time it takes as `train/refresh_s`, apart from training. What it draws depends on seed and epoch alone, so
    a resumed run goes on as the whole run would have.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        method: Any = pl_module.method
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        looked = False

        def look() -> tuple[Tensor, Tensor]:
            nonlocal looked
            looked = True
            return extract(trainer, pl_module)

        started = time.perf_counter()
        key = np.random.SeedSequence([self.seed, trainer.current_epoch])
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        companions = method.on_epoch_start(look, generator)
        datamodule.pair(companions, method.views)
        if method.restarts:
            for parameter in method.parameters():
                for optimizer in trainer.optimizers:
                    optimizer.state.pop(parameter, None)
        if looked:
            pl_module.log("train/refresh_s", time.perf_counter() - started, on_step=False, on_epoch=True, batch_size=1)


@torch.no_grad()
def extract(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[Tensor, Tensor]:
    """One pass over the clean training images, shared among ranks, in eval mode.

    Returns:
        Unit-norm pooled features `(N, F)` and embeddings `(N, D)`, float32, on every rank, in the order of the images.
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
        with trainer.precision_plugin.forward_context():
            features, embeddings = module(batch["image"])
        found.append((batch["index"], functional.normalize(features.float(), dim=1), embeddings.float()))
    for part, was_training in zip(module.modules(), training, strict=True):
        part.training = was_training
    _, features, embeddings = gather_unique(*(torch.cat(column) for column in zip(*found, strict=True)))
    return features, embeddings
