"""An online linear probe: what a linear classifier makes of the features while the network learns."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, normalize, pad

from src.callbacks.evaluation import Evaluation
from src.hints import Positive
from src.module import find_callback
from src.running.distributed import gather_rows
from src.scores import SPACES

MOMENTUM = 0.9
EPSILON = 1e-8  # of variances: a dimension of unit-norm features may have one of 1e-5


class Probe(pl.Callback):
    """Learns, from the features of every training step, a softmax classifier of each space; the network never sees it.

    Logs its accuracy of clean queries, in percent, at each evaluation after its first step: `probe/top1`, named as the
    other scores are (`src.callbacks.evaluation`). Where no training image has a label, or the test classes are not
    trained on, it does nothing.

    Features of unit norm are standardised by batch norm without weights, as in He et al., CVPR 2022 (appendix A.1):
    what sets images apart is small beside what they have in common. It starts at zero and draws nothing; a checkpoint
    has all of it. Several ranks learn from the features of all. A whitened embedding has none: its axes are others
    at each evaluation.

    Args:
        lr: of gradient descent with momentum, whose inputs have a mean square norm of 1.
    """

    def __init__(self, lr: Positive) -> None:
        self.lr = lr
        self.classes = 0  # 0: does nothing
        # By space: weights and velocity (D + 1, C), whose last row is the intercepts'; running mean and variance (D,).
        self.learned: dict[str, dict[str, Tensor]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.classes = 0 if datamodule.unseen else int(datamodule.train_labels.max()) + 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for kept in self.learned.values():
            kept.update({name: tensor.to(pl_module.device) for name, tensor in kept.items()})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_start(trainer, pl_module)  # of a checkpoint from which nothing is left to train

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.classes:
            return
        views = len(outputs["features"]) // len(batch["label"])  # of the label's image; 1 where each has its own label
        labels = gather_rows(batch["label"].repeat(views))
        targets = (labels.unsqueeze(1) == torch.arange(self.classes, device=labels.device)).float()
        for space, made in zip(SPACES, (outputs["embeddings"], outputs["features"]), strict=True):
            if space == "embedding" and pl_module.whitening:
                continue
            features = gather_rows(made)
            if space not in self.learned:
                self.learned[space] = _begin(features, self.classes)
            self._step(self.learned[space], features, targets)

    def _step(self, kept: dict[str, Tensor], features: Tensor, targets: Tensor) -> None:
        """One step of the cross-entropy's gradient; a row of `targets` `(VB, C)` is 0 for an image without a label."""
        inputs, known = _inputs(features, kept, training=True), targets.sum(1, keepdim=True)
        errors = (inputs @ kept["weights"]).softmax(1) * known - targets
        kept["velocity"].mul_(MOMENTUM).add_(inputs.T @ errors / known.sum().clamp(min=1))
        kept["weights"].sub_(kept["velocity"], alpha=self.lr)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        evaluation = find_callback(trainer, Evaluation)  # which comes first, and has gathered the images
        assert evaluation is not None
        for which, query in zip(evaluation.queries, evaluation.sets.values(), strict=False):
            for space, kept in self.learned.items():
                votes = _inputs(query[space], kept, training=False) @ kept["weights"]
                right = (votes.argmax(1) == query["label"]).float()
                name = f"{evaluation.name(which, space)}probe/top1"
                pl_module.log(name, 100 * right.mean(), add_dataloader_idx=False, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"learned": self.learned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.learned = state_dict["learned"]


def _begin(features: Tensor, classes: int) -> dict[str, Tensor]:
    """What is learned of one space, before its first features `(VB, D)`, whose mean and variance it begins with."""
    unit = normalize(features.float(), dim=1)
    weights = unit.new_zeros(unit.shape[1] + 1, classes)
    statistics = {"mean": unit.mean(0), "variance": unit.var(0)}
    return {"weights": weights, "velocity": torch.zeros_like(weights), **statistics}


def _inputs(features: Tensor, kept: dict[str, Tensor], training: bool) -> Tensor:
    """Features `(B, D)` of unit norm, standardised, over the root of D, and a column of ones: float32.

    In training by the batch's own statistics, which the running ones follow.
    """
    unit = normalize(features.float(), dim=1)
    standard = batch_norm(unit, kept["mean"], kept["variance"], training=training, eps=EPSILON)
    return pad(standard / unit.shape[1] ** 0.5, (0, 1), value=1.0)
