"""Scores the embedding on clean images: one extraction pass feeds every metric of the protocol."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from src.distributed import gather_unique


class Evaluation(pl.Callback):
    """Collects what the module extracts in a validation epoch and logs each metric as `<name>/<score>`.

    The first validation loader is the gallery, the second the query; every rank scores all the images.

    Args:
        metrics: by name; each takes gallery, gallery labels, query and query labels and computes a dict of scores.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)
        self.extracted: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.extracted = ([], [])

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.extracted[dataloader_idx].append(outputs)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gallery, query = (_collect(batches) for batches in self.extracted)
        self.extracted = ([], [])
        for name, metric in self.metrics.items():
            # Every rank holds all the images, so there is nothing left to reduce between them.
            metric = metric.to(gallery[0].device)
            metric.sync_on_compute = False
            metric.update(*gallery, *query)
            scores = {f"{name}/{score}": value for score, value in metric.compute().items()}
            pl_module.log_dict(scores, prog_bar=True, add_dataloader_idx=False, batch_size=1)
            metric.reset()


def _collect(batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    index, embedding, label = (torch.cat([batch[key] for batch in batches]) for key in ("index", "embedding", "label"))
    _, embedding, label = gather_unique(index, embedding, label)
    return embedding, label
