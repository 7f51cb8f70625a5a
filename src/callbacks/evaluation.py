"""Scores both spaces on clean images: one extraction pass feeds every metric of the protocol, and who else looks."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from src.backbones.whitening import Whitening
from src.metrics.base import Score
from src.metrics.bootstrap import intervals
from src.module import check_finite
from src.running.distributed import broadcast_buffers, gather_unique
from src.scores import SPACES, VALIDATION


class Evaluation(pl.Callback):
    """Collects what the module extracts in a validation epoch, fits its whitening, and logs the scores of both spaces.

    The `metrics` at each evaluation; the `final` ones, and how sure all of them are, of the untrained network, of the
    last epoch, and where a run is scored again.

    A score of `space`, which decides what is best, is called `<metric>/<score>`, one of the other space
    `<space>/<metric>/<score>`; before those of held-out training images stands `validation/`.

    The first validation loader is the test images, the next, with `validation`, the held-out ones: both are queries.
    The last, where there is one, is training images: those with a label are the `gallery` of the queries, and the
    features of all are what the whitening is fitted to (`fits`). Every rank scores all images.

    Args:
        metrics: by name; each takes query and labels, and gallery and labels where there are, and computes a dict of
            scores.
        final: in the same way.
        space: `embedding` or `pooled`.
        monitor: the score that decides what is best; the attribute is its full name, of the held-out images where there
            are any.
        validation: whether training images are held out.
        gallery: whether the training images that are there are searched.
        fits: whether the module's whitening is fitted before it is scored, or taken as it is.

    Attributes:
        queries: what begins the names of the scores of each query set: of the test images, and of those held out.
        sets: of the latest evaluation, `query` (the test images) and, where there are, `validation` and `gallery`: of
            each `label` `(N,)`, `embedding` `(N, D)` and `pooled` `(N, F)`, on every rank, in the order of the images.
        intervals: by score, of the latest that was final: where 95% of its values lie when queries are drawn anew.
        closed: whether the latest evaluation of the latest epoch was final.
        histograms: by space and grouping of the classes, of the latest that was final: see
            `src.metrics.similarity.Similarity`.

    Raises:
        ValueError: no score is called `monitor`.
    """

    def __init__(
        self,
        metrics: Mapping[str, Score],
        final: Mapping[str, Score],
        space: str,
        monitor: str,
        validation: bool = False,
        gallery: bool = True,
        fits: bool = False,
    ) -> None:
        self.metrics, self.final, self.space = dict(metrics), dict(final), space
        self.gallery, self.fits = gallery, fits
        self.sets: dict[str, dict[str, Tensor]] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.histograms: dict[str, Any] = {}
        self.closed = False
        self.queries = ("", VALIDATION) if validation else ("",)
        self.extracted: dict[int, list[dict[str, Tensor]]] = {}
        if monitor not in (scores := self.scores(self.metrics)):
            raise ValueError(f"protocol.monitor={monitor}: must be one of {', '.join(scores)}")
        self.monitor = f"{self.queries[-1]}{monitor}"

    def scores(self, metrics: Mapping[str, Score]) -> list[str]:
        """The names of the test images' scores, those of `space` first."""
        prefixes = ["" if space == self.space else f"{space}/" for space in (self.space, *SPACES)]
        names = [f"{name}/{score}" for name, metric in metrics.items() for score in metric.scores()]
        return [f"{prefix}{name}" for prefix in dict.fromkeys(prefixes) for name in names]

    def name(self, which: str, space: str) -> str:
        """What begins the names of the scores of a query set, one of `queries`, in a space."""
        return which if space == self.space else f"{which}{space}/"

    def is_complete(self, row: Mapping[str, float]) -> bool:
        """Whether `row`, of the latest epoch, has all the scores that a last one has, and the intervals are its."""
        return self.closed and row.keys() >= {*self.scores(self.metrics | self.final), self.monitor}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sets = {}  # whoever looks has looked; training needs the memory
        self.closed = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.extracted, self.sets = {}, {}

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
        whitening: Any = pl_module.whitening
        sets = self._gather(whitening)
        gallery = sets[len(self.queries) :]
        self.sets = dict(zip((*("query", "validation")[: len(self.queries)], "gallery"), sets, strict=False))
        final = trainer.state.fn == "validate" or trainer.current_epoch + 1 == trainer.max_epochs
        self.closed = final
        if final:
            self.intervals, self.histograms = {}, {}
        for space in SPACES:
            check_finite(space, *(rows[space] for rows in sets))
            for which, query in zip(self.queries, sets, strict=False):
                tensors = [tensor for rows in (query, *gallery) for tensor in (rows[space], rows["label"])]
                prefix = self.name(which, space)
                for name, metric in (self.metrics | self.final if final else self.metrics).items():
                    metric = metric.to(tensors[0].device)
                    metric.update(*tensors)
                    scores = {f"{prefix}{name}/{score}": value for score, value in metric.compute().items()}
                    pl_module.log_dict(scores, add_dataloader_idx=False, batch_size=1)
                    if final:
                        found = intervals(metric, len(query["label"]), seed=0)
                        self.intervals |= {f"{prefix}{name}/{score}": ends for score, ends in found.items()}
                        if which == "" and (histograms := metric.histograms()):
                            self.histograms[space] = histograms
                    metric.reset()

    def _gather(self, whitening: Whitening | None) -> list[dict[str, Tensor]]:
        """What was extracted of each query set and of the gallery, whitened; nothing else of it is held any longer."""
        extracted = [batches for _, batches in sorted(self.extracted.items())]
        self.extracted, first = {}, len(self.queries)
        if whitening and self.fits:
            _fit(whitening, extracted[-1])
        sets = [_collect(batches, whitening) for batches in (extracted if self.gallery else extracted[:first])]
        return [*sets[:first], *map(_labelled, sets[first:])]

    def state_dict(self) -> dict[str, Any]:
        return {"intervals": self.intervals, "histograms": self.histograms, "closed": self.closed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.intervals, self.histograms = state_dict["intervals"], state_dict["histograms"]
        self.closed = state_dict.get("closed", True)


def _fit(whitening: Whitening, batches: list[dict[str, Tensor]]) -> None:
    (features,) = _columns(batches, "features")
    check_finite("pooled", features)
    whitening.fit(features)
    broadcast_buffers(whitening)


def _collect(batches: list[dict[str, Tensor]], whitening: Whitening | None) -> dict[str, Tensor]:
    """Labels and both spaces of one loader's images, in their order, on every rank; the batches' features go."""
    for batch in batches:  # one at a time, as whoever embeds with the run does, or they would be rounded otherwise
        features = batch.pop("features")
        if whitening:
            batch["embedding"] = whitening(features)
        batch["pooled"] = functional.normalize(features, dim=1)
    names = ("label", *SPACES)
    return dict(zip(names, _columns(batches, *names), strict=True))


def _columns(batches: list[dict[str, Tensor]], *names: str) -> tuple[Tensor, ...]:
    """What was extracted of one loader's images under these names, in their order, on every rank."""
    return gather_unique(*(torch.cat([batch[name] for batch in batches]) for name in ("index", *names)))[1:]


def _labelled(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the images that have a label."""
    known = rows["label"] >= 0
    return rows if known.all() else {name: column[known] for name, column in rows.items()}
