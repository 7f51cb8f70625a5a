"""What every method is to the training around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Generator, Tensor, nn


class Extract(Protocol):
    """One pass over the clean training images, in eval mode, without gradient."""

    def __call__(self, kind: Literal["unit", "pooled", "raw"] = "unit") -> tuple[Tensor, Tensor]:
        """Pooled features `(N, F)` and unit-norm embeddings `(N, D)`, of all N images in their order.

        Args:
            kind: of features: of `unit` norm; `pooled`, of any norm, as the head takes them; or `raw`, as they are
                before the network's last ReLU, where it has one.
        """


@dataclass(frozen=True)
class TrainingSet:
    """What a method may know before training.

    Attributes:
        images: how many, N.
        embedding_dim: of the network's embeddings, D.
        pretrained: whether the network was trained before.
        labels: `(N,)`, -1 where there is none; None for a method that is not `supervised`.
        num_features: of the network's pooled features, F.
    """

    images: int
    embedding_dim: int
    pretrained: bool
    labels: Tensor | None
    num_features: int


class Method(nn.Module):
    """Embeddings and the images they come from, to a loss.

    Attributes:
        views: how many views of each image a step sees.
        supervised: reads labels; every output says so.
        trains: False where the initial network is the result.
        restarts: its parameters start anew in every epoch, and so does what the optimizer remembers of them.
        unit_norm: whether a step's embeddings have unit norm; otherwise they are as the head's linear layer leaves
            them.
        optimizer_options: of its own parameters, where they differ from the network's; an `lr` then stays as it is.
        teacher_decay: where it learns from a teacher too, how slowly that follows the network: after each step the
            teacher's weights are `teacher_decay` of themselves and the rest of the network's. See `TaughtMethod`.
        teacher_evaluates: whether the teacher's batch norm takes its running statistics instead of a batch's.
    """

    views = 2
    supervised = False
    trains = True
    restarts = False
    unit_norm = True
    optimizer_options: Mapping[str, float] = {}
    teacher_decay: float | None = None
    teacher_evaluates = False

    def setup(self, data: TrainingSet) -> None:
        """Make what depends on the training set: parameters, memory.

        Raises:
            ValueError: the method needs what the dataset or the network lacks.
        """

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor | None:
        """Prepare an epoch from what the network makes of the clean training images.

        Args:
            extract: one pass over them, only if called.
            generator: depends on seed and epoch alone; the same on every rank.

        Returns:
            Companions `(N, V)`: place i of the epoch has a view of each of these V images. None: V views of image i.
        """
        return None

    def order(self, extract: Extract, generator: Generator, batch: int) -> Tensor | None:
        """Say which places an epoch's batches have, where they are not drawn at random.

        Args:
            extract: as of `on_epoch_start`, as are the rest.
            batch: places of a step on all ranks together, B.

        Returns:
            Places `(SB,)`, S = N // B, the first B of them the first step's, … None: every place once, in any order.
        """
        return None

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        """A step.

        Args:
            embeddings: `(VB, D)`, float32, of unit norm where the method asks for it: rows i, i + B, … are the V views
                of place i of the batch.
            index: `(B,)`, the image in the first view.

        Returns:
            The `loss` to minimise, and whatever else is worth a curve, detached.
        """
        raise NotImplementedError

    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        """Remember what `forward` was given, detached, once the network has learned from it."""


class TaughtMethod(Method):
    """A method that learns from a teacher too: an average of the network's past weights, which sees the same views."""

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, index: Tensor, features: Tensor, teacher: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """A step; see `Method.forward`.

        Args:
            embeddings, index: as of any method.
            features: pooled `(VB, F)`, of any norm, as the head takes them.
            teacher: what the teacher makes of the same views, without gradient: its features `(VB, F)` and embeddings
                `(VB, D)`.
        """
        raise NotImplementedError
