"""Scores both spaces on clean images: one extraction pass feeds every metric of the protocol."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.metrics.base import Score
from src.running.distributed import gather_unique

SPACES = ("embedding", "pooled")  # the unit-norm output of the head, and of the backbone before it
VALIDATION = "validation/"  # begins the names of the held-out training images' scores


def is_aside(name: str) -> bool:
    """Whether a score is of the space that decides nothing."""
    return name.removeprefix(VALIDATION).startswith(tuple(f"{space}/" for space in SPACES))


class Evaluation(pl.Callback):
    """Collects what the module extracts in a validation epoch and logs the scores of both spaces.

    A score of `space`, which decides what is best, is called `<metric>/<score>`, one of the other space
    `<space>/<metric>/<score>`; before those of held-out training images stands `validation/`.

    The first validation loader is the test images, the next, with `validation`, the held-out ones: both are queries of
    the gallery, the last loader where there is one. Every rank scores all images.

    Args:
        metrics: by name; each takes query and labels, and gallery and labels where there are, and computes a dict of
            scores.
        space: `embedding` or `pooled`.
        monitor: the score that decides what is best; the attribute is its full name, of the held-out images where there
            are any.
        validation: whether training images are held out.

    Raises:
        ValueError: no score is called `monitor`.
    """

    def __init__(self, metrics: Mapping[str, Score], space: str, monitor: str, validation: bool = False) -> None:
        self.metrics, self.space = dict(metrics), space
        self.queries = ("", VALIDATION) if validation else ("",)
        self.extracted: dict[int, list[dict[str, Tensor]]] = {}
        self.extracted_sets: dict[str, dict[str, Tensor]] = {}
        self.histograms: dict[str, dict[str, dict[str, list[float]]]] = {}
        if monitor not in (scores := self.scores()):
            raise ValueError(f"protocol.monitor={monitor}: must be one of {', '.join(scores)}")
        self.monitor = f"{self.queries[-1]}{monitor}"

    def scores(self) -> list[str]:
        """The names of the test images' scores, those of `space` first."""
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
        self.extracted_sets = dict(zip(("query", "gallery"), (sets[0], *sets[len(self.queries) :]), strict=False))
        for space in SPACES:
            if not all(rows[space].isfinite().all() for rows in sets):
                raise FloatingPointError(f"{space} features are not finite: lower optimizer.lr, or see the weights")
            gallery = sets[len(self.queries) :]
            for which, query in zip(self.queries, sets, strict=False):
                tensors = [tensor for rows in (query, *gallery) for tensor in (rows[space], rows["label"])]
                prefix = which if space == self.space else f"{which}{space}/"
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
