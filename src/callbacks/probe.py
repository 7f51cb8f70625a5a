"""An online linear probe: what a linear classifier makes of the features while the network learns."""

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from src.callbacks.evaluation import SPACES, VALIDATION
from src.hints import Positive
from src.running.distributed import gather_rows, gather_unique

MOMENTUM = 0.9


class Probe(pl.Callback):
    """Learns, from the features of every training step, a softmax classifier of each space; the network never sees it.

    Logs its accuracy of clean queries, in percent, at each evaluation after its first step: `probe/top1`, named as the
    other scores are (`src.callbacks.evaluation`). Where no training image has a label, or the test classes are not
    trained on, it does nothing.

    It starts at zero and draws nothing; a checkpoint has all of it. Several ranks learn from the features of all.

    Args:
        space: the one that decides what is best.
        lr: of gradient descent with momentum; features have unit norm.
    """

    def __init__(self, space: Literal["embedding", "pooled"], lr: Positive) -> None:
        self.space, self.lr = space, lr
        self.classes = 0  # 0: does nothing
        self.weights: dict[str, Tensor] = {}  # by space, (D + 1, C): the last row is the intercepts
        self.velocity: dict[str, Tensor] = {}
        self.scored: dict[int, list[tuple[Tensor, ...]]] = {}  # by query set: index, and whether right in each space

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.classes = 0 if datamodule.unseen else int(datamodule.train_labels.max()) + 1
        self.queries = ("",) if datamodule.validation_labels is None else ("", VALIDATION)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for kept in (self.weights, self.velocity):
            kept.update({space: tensor.to(pl_module.device) for space, tensor in kept.items()})

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.classes:
            return
        labels = batch["label"].repeat(len(outputs["features"]) // len(batch["label"]))
        labels = gather_rows(labels)
        targets = (labels.unsqueeze(1) == torch.arange(self.classes, device=labels.device)).float()
        known = targets.sum(1, keepdim=True)  # 0 for an image without a label
        for space, made in zip(SPACES, (outputs["embeddings"], outputs["features"]), strict=True):
            inputs = _inputs(gather_rows(made))
            if space not in self.weights:
                self.weights[space] = inputs.new_zeros(inputs.shape[1], self.classes)
                self.velocity[space] = torch.zeros_like(self.weights[space])
            errors = (inputs @ self.weights[space]).softmax(1) * known - targets
            gradient = inputs.T @ errors / known.sum().clamp(min=1)
            self.velocity[space].mul_(MOMENTUM).add_(gradient)
            self.weights[space].sub_(self.velocity[space], alpha=self.lr)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.scored = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.weights and dataloader_idx < len(self.queries):
            votes = (_inputs(outputs[space]) @ self.weights[space] for space in SPACES)
            right = ((vote.argmax(1) == outputs["label"]).float() for vote in votes)
            self.scored.setdefault(dataloader_idx, []).append((outputs["index"], *right))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number, batches in self.scored.items():
            _, *right = gather_unique(*(torch.cat(column) for column in zip(*batches, strict=True)))
            for space, hits in zip(SPACES, right, strict=True):
                prefix = self.queries[number] + ("" if space == self.space else f"{space}/")
                pl_module.log(f"{prefix}probe/top1", 100 * hits.mean(), add_dataloader_idx=False, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "velocity": self.velocity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights, self.velocity = state_dict["weights"], state_dict["velocity"]


def _inputs(features: Tensor) -> Tensor:
    """Features `(B, D)` of unit norm, float32, and a column of ones."""
    return pad(normalize(features.float(), dim=1), (0, 1), value=1.0)
