"""Trained with labels, for comparison: any loss of pytorch-metric-learning (Table 3, upper part)."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from src.hints import Name
from src.methods.base import Method, TrainingSet
from src.running.distributed import gather_rows, gather_views


def find(kind: str, name: str) -> type[nn.Module]:
    """The class `name` among pytorch-metric-learning's `losses` or `miners`.

    Raises:
        ImportError: the package is not installed.
        ValueError: it has no such class.
    """
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError as error:
        raise ImportError("method=supervised needs pytorch-metric-learning: pip install '.[supervised]'") from error
    found = getattr({"losses": losses, "miners": miners}[kind], name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"method: pytorch-metric-learning has no {name} among its {kind}")
    return found


class Supervised(Method):
    """Labels used. Both views of an image have its label.

    Args:
        loss: name of the loss, such as `LiftedStructureLoss`; what it needs to know of the data (`num_classes`,
            `embedding_size`) it is told.
        options: of the loss.
        miner: name of a miner, such as `TripletMarginMiner`; None takes the loss's own pairs.
        miner_options: of the miner.
    """

    supervised = True
    labels: Tensor

    def __init__(
        self, loss: Name, options: Mapping[str, Any], miner: Name | None, miner_options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.name, self.kind, self.options = loss, find("losses", loss), dict(options)
        self.miner = find("miners", miner)(**miner_options) if miner else None

    def setup(self, data: TrainingSet) -> None:
        assert data.labels is not None
        if data.labels.min() < 0:
            raise ValueError("method=supervised needs a label for every training image, and some have none")
        classes, labels = data.labels.unique(return_inverse=True)
        facts = {"num_classes": len(classes), "embedding_size": data.embedding_dim}
        asked = inspect.signature(self.kind).parameters
        told = {name: value for name, value in facts.items() if name in asked}
        try:
            self.loss = self.kind(**told | self.options)
        except TypeError as error:
            raise ValueError(f"method.options={self.options} do not fit method.loss={self.name}: {error}") from error
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        embeddings, labels = gather_views(embeddings), self.labels[gather_rows(index)].repeat(2)
        mined = (self.miner(embeddings, labels),) if self.miner else ()
        loss: Tensor = self.loss(embeddings, labels, *mined)
        return {"loss": torch.as_tensor(loss)}
