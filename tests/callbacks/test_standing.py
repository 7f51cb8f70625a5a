"""How far a run is, said from outside and asked from outside."""

from pathlib import Path

import pytest
import pytorch_lightning as pl

from src.callbacks.history import History
from src.callbacks.standing import Standing
from src.running import runs


def test_after_one_epoch_the_rest_takes_as_long_each(tmp_path: Path) -> None:
    history = History()
    history.rows = [{"epoch": 0}, {"epoch": 1}]
    history._started -= 60
    trainer = pl.Trainer(max_epochs=3, logger=False, accelerator="cpu", enable_checkpointing=False)
    Standing(tmp_path, history, "knn/top1").on_train_epoch_end(trainer, pl.LightningModule())
    assert 120 <= runs.read_progress(tmp_path)["seconds_left"] < 130


@pytest.mark.parametrize("asked", [False, True])
def test_progress_after_an_epoch_and_an_end_that_is_asked_for(tmp_path: Path, asked: bool) -> None:
    history = History()
    history.rows = [{"epoch": 0, "knn/top1": 20.0}, {"epoch": 1}, {"epoch": 2, "knn/top1": 30.0}, {"epoch": 3}]
    history._started -= 60
    trainer = pl.Trainer(max_epochs=9, logger=False, accelerator="cpu", enable_checkpointing=False)
    if asked:
        (tmp_path / "stop").touch()
    Standing(tmp_path, history, "knn/top1").on_train_epoch_end(trainer, pl.LightningModule())
    progress = runs.read_progress(tmp_path)
    assert 120 <= progress.pop("seconds_left") < 130, "3 epochs took a minute, 6 are left"
    assert progress == {"epoch": 3, "epochs": 9, "monitor": "knn/top1", "scores": [[0, 20.0], [2, 30.0]]}
    assert trainer.should_stop is asked
