"""What every method is to the training around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor, nn


class Extract(Protocol):
    """One pass over the clean training images, in eval mode."""

    def __call__(self, *, raw: bool = False) -> tuple[Tensor, Tensor]:
        """Pooled features `(N, F)` and embeddings `(N, D)`, both of unit norm, of all N images in their order.

        With `raw` the features are of any norm, and as they are before the network's last ReLU, where it has one.
        """


@dataclass(frozen=True)
class TrainingSet:
    """What a method may know before training.

    Attributes:
        images: how many, N.
        embedding_dim: of the network's embeddings, D.
        pretrained: whether the network was trained before.
        labels: `(N,)`, -1 where there is none; None for a method that is not `supervised`.
    """

    images: int
    embedding_dim: int
    pretrained: bool
    labels: Tensor | None


class Method(nn.Module):
    """Embeddings and the images they come from, to a loss.

    Attributes:
        views: how many views of each image a step sees.
        supervised: reads labels; every output says so.
        trains: False where the initial network is the result.
        restarts: its parameters start anew in every epoch, and so does what the optimizer remembers of them.
        unit_norm: whether a step's embeddings have unit norm; otherwise they are as the head's linear layer leaves
            them.
        optimizer_options: of its own parameters, where they differ from the network's.
    """

    views = 2
    supervised = False
    trains = True
    restarts = False
    unit_norm = True
    optimizer_options: Mapping[str, float] = {}

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
