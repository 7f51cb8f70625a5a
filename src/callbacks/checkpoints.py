"""When a checkpoint is written: after every epoch, once it is scored."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from src.callbacks.history import History
from src.running import checkpoints


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the place and renames; Lightning's own goes through TMPDIR, which may be on another file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoints.save(checkpoint, Path(path))


class Checkpoints(Checkpoint):
    """Keeps the last epoch, the one before, and the one that `history` calls the best by `monitor`.

    So the row of the best and its checkpoint are always of one epoch. Lightning calls this after all other callbacks.
    """

    def __init__(self, folder: Path, history: History, monitor: str) -> None:
        self.folder, self.history, self.monitor = folder, history, monitor

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path:  # a run cut off between its last checkpoint and the best
            self._keep_best(trainer, Path(trainer.ckpt_path))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last, previous = (checkpoints.path_of(self.folder, name) for name in ("last", "previous"))
        if trainer.is_global_zero and last.exists():
            os.replace(last, previous)
        trainer.save_checkpoint(last, weights_only=False)
        self._keep_best(trainer, last)

    def _keep_best(self, trainer: pl.Trainer, last: Path) -> None:
        """Make the last checkpoint the best one too where its epoch is the best so far."""
        if not trainer.is_global_zero or self.history.best(self.monitor) is not self.history.rows[-1]:
            return
        best = checkpoints.path_of(self.folder, "best")
        partial = best.with_name(f".{best.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(last, partial)  # one file under two names, which nothing ever writes into
        except OSError:  # a file system without links
            shutil.copyfile(last, partial)
        os.replace(partial, best)
