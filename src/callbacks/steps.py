"""What the steps of an epoch measure: the loss and its terms, the learning rate, images per second."""

import math
import time
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.callbacks.refresh import Refresh
from src.module import find_callback, may_wait


class Steps(pl.Callback):
    """Logs `train/<term>_step` and `train/images_per_s` (over all ranks) of some steps, `train/<term>` of each epoch.

    And `train/seconds`, how long the run has trained when an epoch's last step is done: its steps and what is looked up
    between them, without evaluations, pictures and checkpoints.

    It reads the device only when `may_wait` allows, the steps since the last time at once. Lightning would keep its
    means at every step, which takes it longer than all else that it does in one.

    A checkpoint has the sums of its epoch so far, and the seconds; images per second are counted anew where a run goes
    on within one.

    Raises:
        FloatingPointError: the loss of a step is not finite, the message names the first such step and its batch; or
            a weight is not, at the end of an epoch or in what is to be a checkpoint.
    """

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.seconds = 0.0  # trained until `running`, or now where that is None
        self.running: float | None = None
        self.lr = 0.0  # of the epoch's first step
        self.unread: list[tuple[int, int, Tensor, dict[str, Tensor]]] = []  # step, batch, images and terms

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.images = time.perf_counter(), 0
        self.running = self.start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        refresh = find_callback(trainer, Refresh)
        self.seconds += refresh.seconds if refresh else 0
        self.sums.clear()
        self.steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch["index"]) * trainer.world_size
        self.unread.append((trainer.global_step - 1, batch_idx, batch["index"], outputs["terms"]))
        if may_wait(trainer):
            latest = self._read(trainer.current_epoch)
            latest["train/images_per_s"] = self.images / (time.perf_counter() - self.start)
            pl_module.log_dict(latest, on_step=True, on_epoch=False, batch_size=1)
        if trainer.is_last_batch:
            self.seconds, self.running = self._trained(), None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._settle(trainer.current_epoch, pl_module)
        means = {f"train/{name}": total / self.steps for name, total in self.sums.items()}
        pl_module.log_dict(means | {"train/lr": self.lr, "train/seconds": self.seconds}, batch_size=1)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle(trainer.current_epoch, pl_module)
        kept = {"sums": dict(self.sums), "steps": self.steps, "lr": self.lr, "seconds": self._trained()}
        checkpoint["steps"] = kept

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if kept := checkpoint.get("steps"):  # none in what was written before there were any within an epoch
            self.sums, self.steps = defaultdict(float, kept["sums"]), kept["steps"]
            self.seconds, self.lr = kept["seconds"], kept["lr"]

    def _trained(self) -> float:
        return self.seconds + (0 if self.running is None else time.perf_counter() - self.running)

    def _settle(self, epoch: int, pl_module: pl.LightningModule) -> None:
        """Read what is unread, and see that the weights are finite."""
        if self.unread:
            self._read(epoch)
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            raise FloatingPointError(f"the weights are no longer finite in epoch {epoch + 1}: lower optimizer.lr")

    def _read(self, epoch: int) -> dict[str, float]:
        """Wait for what is unread, add it up, and return the terms of the last step."""
        values = iter(torch.stack([term.float() for *_, terms in self.unread for term in terms.values()]).tolist())
        for step, batch, index, terms in self.unread:
            read = {name: next(values) for name in terms}
            if not math.isfinite(read["loss"]):
                raise FloatingPointError(
                    f"the loss became {read['loss']} at step {step} (epoch {epoch}, batch {batch}, images "
                    f"{index[:3].tolist()} and {max(0, len(index) - 3)} more): lower optimizer.lr or raise "
                    "method.temperature"
                )
            for name, value in read.items():
                self.sums[name] += value
        self.steps += len(self.unread)
        self.unread.clear()
        return {f"train/{name}_step": value for name, value in read.items()}
