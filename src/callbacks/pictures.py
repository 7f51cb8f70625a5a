"""When pictures of the embedding are drawn, of which images, and who is shown them."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib.image
import pytorch_lightning as pl
import torch
from annotated_types import Interval
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from src.callbacks import drawing
from src.callbacks.evaluation import Evaluation
from src.hints import Seed, Whole
from src.metrics.groupings import prefix
from src.module import find_callback
from src.running import figures
from src.vectors.neighbors import nearest_neighbors

Shown = Annotated[int, Interval(ge=1, le=100)]
Mapped = Annotated[int, Interval(ge=5, le=100_000)]


class Pictures(pl.Callback):
    """Draws into `figures/` of the run folder, in the space that decides, from what the evaluation extracted.

    - `gallery`: the same queries throughout, drawn evenly from the classes, and their nearest images, at `epochs` and
      the last (paper, Figure 4).
    - `failures`: the queries whose nearest image is of another class and yet most similar, at the last epoch.
    - `map`: test images, drawn evenly from the classes, in two dimensions, of the untrained network and the last epoch.
    - `similarity`: cosine similarities within and between classes, at the last epoch beside the untrained network's,
      where a metric has counted them (paper, Figures 5 and 6).

    The last epoch is `max_epochs`, or what is scored after an end that came sooner. An epoch with nothing to draw costs
    nothing, and no drawing draws a number from torch's or numpy's own generators. Only rank 0 draws.

    `pictures` says what there is: `title`, `kind`, `epoch`, and the files `png` and `svg`, from the run folder.

    Args:
        queries: of the gallery, and of the failures at most.
        neighbors: nearest images of each.
        epochs: of the gallery, 0 is the untrained network; the last is always drawn.
        images: on the map at most; t-SNE takes about 6 s for 1,000 and 15 s for 2,000.
        projection: of the map: `tsne`, or `umap`, which compiles itself for about 20 s first.
        seed: determines the queries, the images of the map and where they lie.

    Raises:
        ImportError: umap-learn is not installed.
        OSError: the pictures can't be written.
    """

    def __init__(
        self,
        queries: Shown,
        neighbors: Shown,
        epochs: Sequence[Whole],
        images: Mapped,
        projection: Literal["tsne", "umap"],
        seed: Seed,
    ) -> None:
        if projection == "umap" and not find_spec("umap"):
            raise ImportError("callbacks.pictures.projection=umap needs umap-learn: pip install '.[map]'")
        self.queries, self.neighbors, self.epochs, self.images = queries, neighbors, set(epochs), images
        self.projection, self.seed = projection, seed
        self.pictures: list[dict[str, Any]] = []
        self.untrained: dict[str, Any] = {}  # histograms, which stand beside the last epoch's

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        evaluation = find_callback(trainer, Evaluation)
        assert evaluation is not None
        fitting = trainer.state.fn == "fit"
        epoch = trainer.current_epoch + fitting
        # Apart from training are scored the untrained network, and the last epoch where training did not.
        last = epoch >= (trainer.max_epochs or 0) or not (fitting or epoch == 0)
        if epoch == 0:
            self.untrained = _histograms(trainer, evaluation)
        if last or epoch in self.epochs:
            self._draw_retrieved(trainer, evaluation, epoch, last)
        if last or epoch == 0:
            self._draw_map(trainer, evaluation, epoch)
        if last and (histograms := _histograms(trainer, evaluation)):
            columns = {f"epoch {epoch}": histograms}
            if self.untrained and epoch:
                columns = {"untrained": self.untrained} | columns
            title = f"Similarity of nearest images, {_when(epoch)} ({evaluation.space})"
            self._keep(trainer, "similarity", title, epoch, drawing.draw_similarities(title, columns))

    def _draw_retrieved(self, trainer: pl.Trainer, evaluation: Evaluation, epoch: int, last: bool) -> None:
        query, space = evaluation.sets["query"], evaluation.space
        gallery = evaluation.sets.get("gallery")
        searched = query if gallery is None else gallery
        count = min(self.neighbors, len(searched["label"]) - (gallery is None))
        if not count:
            return

        def retrieve(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
            own = rows if gallery is None else None
            return nearest_neighbors(query[space][rows].float(), searched[space].float(), count, own)

        def draw(kind: str, words: str, rows: Tensor) -> None:
            similarity, found = retrieve(rows, count)
            labels = torch.cat([query["label"][rows].unsqueeze(1), searched["label"][found]], 1)
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            take = datamodule.query_images if gallery is None else datamodule.gallery_images
            nearest = take(found.flatten().cpu()).unflatten(0, found.shape)
            images = torch.cat([datamodule.query_images(rows.cpu()).unsqueeze(1), nearest], 1)
            title = f"{words}, {_when(epoch)} ({space})"
            figure = drawing.draw_retrieved(title, images, labels, similarity, datamodule.store.classes)
            self._keep(trainer, kind, title, epoch, figure)

        labels = query["label"]
        chosen = trainer.datamodule.draw_queries(self.queries, self.seed).to(labels.device)  # type: ignore[attr-defined]
        draw("gallery", "Queries and their nearest images", chosen[labels[chosen].argsort(stable=True)])
        if last:
            similarity, found = retrieve(torch.arange(len(labels), device=labels.device), 1)
            wrong = worst_failures(labels, searched["label"][found[:, 0]], similarity[:, 0], self.queries)
            if len(wrong):
                draw("failures", "Worst failures, most similar first", wrong)

    def _draw_map(self, trainer: pl.Trainer, evaluation: Evaluation, epoch: int) -> None:
        query, datamodule = evaluation.sets["query"], trainer.datamodule  # type: ignore[attr-defined]
        labels, rows = query["label"].cpu(), datamodule.draw_queries(self.images, self.seed)
        if len(rows) < 5:
            return
        points = drawing.project(query[evaluation.space].cpu()[rows], self.projection, self.seed)
        name = {"tsne": "t-SNE", "umap": "UMAP"}[self.projection]
        title = f"{name} of {len(rows):,} test images, {_when(epoch)} ({evaluation.space})"
        figure = drawing.draw_map(title, points, datamodule.query_images(rows), labels[rows], datamodule.store.classes)
        self._keep(trainer, "map", title, epoch, figure)

    def _keep(self, trainer: pl.Trainer, kind: str, title: str, epoch: int, figure: Figure) -> None:
        folder, name = Path(trainer.default_root_dir), f"figures/{kind}-epoch-{epoch}"
        figures.save(figure, folder / name)
        png = folder / f"{name}.png"
        picture = {"title": title, "kind": kind, "epoch": epoch, "png": f"{name}.png", "svg": f"{name}.svg"}
        self.pictures = [other for other in self.pictures if other["png"] != picture["png"]] + [picture]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"pictures/{kind}", [str(png)], step=trainer.global_step, caption=[title])
            elif isinstance(logger, TensorBoardLogger):
                pixels = matplotlib.image.imread(png)[..., :3]
                logger.experiment.add_image(f"pictures/{kind}", pixels, trainer.global_step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        return {"pictures": self.pictures, "untrained": self.untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pictures, self.untrained = state_dict["pictures"], state_dict["untrained"]


def worst_failures(labels: Tensor, found: Tensor, similarity: Tensor, count: int) -> Tensor:
    """At most `count` queries, the most similar first, whose nearest image is of another class.

    Args:
        labels: `(Q,)` of the queries; -1, unknown, is no failure.
        found: `(Q,)`, labels of what is nearest to each.
        similarity: `(Q,)` of the two.
    """
    wrong = ((labels != found) & (labels >= 0) & (found >= 0)).nonzero().squeeze(1)
    return wrong[similarity[wrong].argsort(descending=True, stable=True)[:count]]


def _histograms(trainer: pl.Trainer, evaluation: Evaluation) -> dict[str, Any]:
    """Those of the space that decides, by grouping, each with the `scores` that the metric took of it."""
    scores = trainer.callback_metrics
    return {
        grouping: {
            **histogram,
            "scores": {
                score: float(scores[name])
                for score in ("AUC", "overlap")
                if (name := f"similarity/{prefix(grouping)}{score}") in scores
            },
        }
        for grouping, histogram in evaluation.histograms.get(evaluation.space, {}).items()
    }


def _when(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "untrained network"
