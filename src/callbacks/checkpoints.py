"""When a checkpoint is written: after every epoch, once it is scored, and within one where a signal ends the run."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from src.callbacks.history import History
from src.module import may_wait
from src.running import checkpoints, signals


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the place and renames; Lightning's own goes through TMPDIR, which may be on another file system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoints.save(checkpoint, Path(path))


class Checkpoints(Checkpoint):
    """Keeps the last epoch, the one before, and the one that `history` calls the best by `monitor`.

    So the row of the best and its checkpoint are always of one epoch. Lightning calls this after all other callbacks.
    A run of no epochs keeps the network that it scored.

    A signal, once an epoch has learned something, ends the run with a checkpoint: after the step, several ranks after
    the next step at which they may wait for each other (`may_wait`); after an epoch's last step, once that is scored.
    A run that goes on within an epoch does as if it had never left.
    """

    def __init__(self, folder: Path, history: History, monitor: str) -> None:
        self.folder, self.history, self.monitor = folder, history, monitor
        self.ends = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run cut off between its last checkpoint and the best; none within an epoch is the best.
        if trainer.ckpt_path and not trainer.fit_loop.restarted_mid_epoch:
            self._keep_best(trainer, Path(trainer.ckpt_path))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = checkpoints.path_of(self.folder, "last")
        if self.history.rows[-1]["epoch"] == 0:
            self._save(trainer)
        self._keep_best(trainer, last)  # of a run cut off there in its last epoch, which nothing was left to train of

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        last = checkpoints.path_of(self.folder, "last")
        if trainer.state.fn == "validate" and trainer.is_global_zero and module.whitening and last.exists():
            # The last epoch was not scored when its checkpoint was written, whose whitening is of an epoch before.
            checkpoint = checkpoints.load(last)
            fitted = {f"whitening.{name}": value.cpu() for name, value in module.whitening.state_dict().items()}
            checkpoint["state_dict"] |= fitted
            checkpoints.save(checkpoint, last)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.ends:  # now that the loggers have the step before
            signals.leave()
        signals.instead(_wait if trainer.is_global_zero else lambda number: None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        meet = trainer.world_size == 1 or may_wait(trainer)
        self.ends = stepped and meet and not trainer.is_last_batch and _asked(trainer)
        if self.ends:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep_best(trainer, self._save(trainer))
        self.ends = _asked(trainer)
        trainer.should_stop |= self.ends
        signals.instead(None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ends:
            signals.leave()

    def _save(self, trainer: pl.Trainer) -> Path:
        last, previous = (checkpoints.path_of(self.folder, name) for name in ("last", "previous"))
        if trainer.is_global_zero and last.exists():
            os.replace(last, previous)
        trainer.save_checkpoint(last, weights_only=False)
        return last

    def _keep_best(self, trainer: pl.Trainer, last: Path) -> None:
        """Make the last checkpoint the best one too where its epoch is the best so far."""
        if not trainer.is_global_zero or self.history.best(self.monitor) is not self.history.rows[-1]:
            return
        best = checkpoints.path_of(self.folder, "best")
        if best.exists() and best.samefile(last):
            return
        partial = best.with_name(f".{best.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(last, partial)  # one file under two names, which nothing ever writes into
        except OSError:  # a file system without links
            shutil.copyfile(last, partial)
        os.replace(partial, best)


def _wait(number: int) -> None:
    signals.say(f"{signal.Signals(number).name}: ends when this step is kept, or this epoch scored; again: at once")


def _asked(trainer: pl.Trainer) -> bool:
    """Whether a signal has come to any rank; all ranks ask together."""
    return trainer.strategy.reduce_boolean_decision(signals.asked() > 0, all=False)
