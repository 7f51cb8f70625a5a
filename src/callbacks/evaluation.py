"""Scores the embedding on clean images: one extraction pass feeds every metric of the protocol."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from src.running.distributed import gather_unique


class Evaluation(pl.Callback):
    """Collects what the module extracts in a validation epoch and logs each metric as `<name>/<score>`.

    The first validation loader is the query, the second, where there is one, the gallery; every rank scores all images.

    Args:
        metrics: by name; each takes query and labels, and gallery and labels where there are, and computes a dict of
            scores.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)
        self.extracted: dict[int, list[dict[str, Tensor]]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.extracted = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.extracted.setdefault(dataloader_idx, []).append(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sets = [tensor for _, batches in sorted(self.extracted.items()) for tensor in _collect(batches)]
        self.extracted = {}
        for name, metric in self.metrics.items():
            # Every rank holds all the images, so there is nothing left to reduce between them.
            metric = metric.to(sets[0].device)
            metric.sync_on_compute = False
            metric.update(*sets)
            scores = {f"{name}/{score}": value for score, value in metric.compute().items()}
            pl_module.log_dict(scores, add_dataloader_idx=False, batch_size=1)
            metric.reset()


def _collect(batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    index, embedding, label = (torch.cat([batch[key] for batch in batches]) for key in ("index", "embedding", "label"))
    _, embedding, label = gather_unique(index, embedding, label)
    return embedding, label
