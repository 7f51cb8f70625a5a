"""How far a run is, for who looks from outside; and an early end that is asked for from there."""

from pathlib import Path

import pytorch_lightning as pl

from src.callbacks.history import History
from src.running import runs


class Standing(pl.Callback):
    """Writes `progress.json` into the run folder after each epoch, and ends the run where a file `stop` is there.

    A run that ends so is a finished one, of fewer epochs.
    """

    def __init__(self, folder: Path, history: History, monitor: str) -> None:
        self.folder, self.history, self.monitor = folder, history, monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write(trainer)
        asked = (self.folder / runs.STOP).exists()
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(asked, all=False)

    def _write(self, trainer: pl.Trainer) -> None:
        self.history.finish_leg()
        leg, rows = self.history.legs[-1], self.history.rows
        epochs = trainer.max_epochs or 0
        left = leg["seconds"] / max(leg["epochs"], 1) * (epochs - rows[-1]["epoch"])
        runs.write_progress(
            self.folder,
            {
                "epoch": int(rows[-1]["epoch"]),
                "epochs": epochs,
                "monitor": self.monitor,
                "scores": [[row["epoch"], row[self.monitor]] for row in rows if self.monitor in row],
                "seconds_left": left,
            },
        )
