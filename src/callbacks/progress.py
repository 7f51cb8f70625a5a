"""The progress bar: what a person watches while it trains."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich bar with the loss of the step, images per second and the latest scores, under short names."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        names = {"train/loss_step": "loss", "train/images_per_s": "images/s"}
        shown = {names.get(name, name): value for name, value in metrics.items()}
        return {name: value for name, value in shown.items() if name not in ("v_num", "train/loss_epoch")}
