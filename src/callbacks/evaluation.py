"""Scores both spaces on clean images: one extraction pass feeds every metric of the protocol."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.metrics.base import Score
from src.running.distributed import gather_unique

SPACES = ("embedding", "pooled")  # the unit-norm output of the head, and of the backbone before it


class Evaluation(pl.Callback):
    """Collects what the module extracts in a validation epoch and logs the scores of both spaces.

    A score of `space`, which decides what is best, is called `<metric>/<score>`, one of the other space
    `<space>/<metric>/<score>`.

    The first validation loader is the query, the second, where there is one, the gallery; every rank scores all images.

    Args:
        metrics: by name; each takes query and labels, and gallery and labels where there are, and computes a dict of
            scores.
        space: `embedding` or `pooled`.
    """

    def __init__(self, metrics: Mapping[str, Score], space: str) -> None:
        self.metrics, self.space = dict(metrics), space
        self.extracted: dict[int, list[dict[str, Tensor]]] = {}

    def scores(self) -> list[str]:
        """The names of all that it logs, those of `space` first."""
        prefixes = ["" if space == self.space else f"{space}/" for space in (self.space, *SPACES)]
        names = [f"{name}/{score}" for name, metric in self.metrics.items() for score in metric.scores()]
        return [f"{prefix}{name}" for prefix in dict.fromkeys(prefixes) for name in names]

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
        sets = [_collect(batches) for _, batches in sorted(self.extracted.items())]
        self.extracted = {}
        for space in SPACES:
            if not all(rows[space].isfinite().all() for rows in sets):
                raise FloatingPointError(f"{space} features are not finite: lower optimizer.lr, or see the weights")
            tensors = [tensor for rows in sets for tensor in (rows[space], rows["label"])]
            prefix = "" if space == self.space else f"{space}/"
            for name, metric in self.metrics.items():
                # Every rank holds all the images, so there is nothing left to reduce between them.
                metric = metric.to(tensors[0].device)
                metric.sync_on_compute = False
                metric.update(*tensors)
                scores = {f"{prefix}{name}/{score}": value for score, value in metric.compute().items()}
                pl_module.log_dict(scores, add_dataloader_idx=False, batch_size=1)
                metric.reset()


def _collect(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = ("label", *SPACES)
    columns = gather_unique(*(torch.cat([batch[name] for batch in batches]) for name in ("index", *names)))
    return dict(zip(names, columns[1:], strict=True))
