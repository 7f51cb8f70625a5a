"""How fast the training runs."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from src.module import may_wait


class Throughput(pl.Callback):
    """Logs training images per second over all ranks, since the epoch began; evaluation does not count."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch["index"]) * trainer.world_size
        if may_wait(trainer):
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            rate = self.images / (time.perf_counter() - self.start)
            pl_module.log("train/images_per_s", rate, on_step=True, on_epoch=False, batch_size=1)
