"""How fast the training runs."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Throughput(pl.Callback):
    """Logs training images per second over all ranks, since the epoch began; evaluation does not count.

    Every `trainer.log_every_n_steps` steps and at the end of the epoch: an accelerator has to be waited for.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch["index"]) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_last_batch or (batch_idx + 1) % every == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            rate = self.images / (time.perf_counter() - self.start)
            pl_module.log("train/images_per_s", rate, on_step=True, on_epoch=False, batch_size=1)
