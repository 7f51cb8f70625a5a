"""Which checkpoints are kept, and that the best is always the one that the history calls so."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from src.backbones.whitening import Whitening
from src.callbacks.checkpoints import Checkpoints, WholeCheckpointIO
from src.callbacks.history import History
from src.running import checkpoints, signals
from tests.callbacks.test_callbacks import Lookup, loader, split, trainer


class Scores(pl.Callback):
    """Scores the epochs as it is told; None: not at all."""

    def __init__(self, scores: list[float | None]) -> None:
        self.scores = scores

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = self.scores[trainer.current_epoch]
        if score is not None:
            pl_module.log("knn/top1", score)


class Rows(History):
    """A history whose scores come from training."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name == "knn/top1"}
        self.rows.append({"epoch": trainer.current_epoch + 1, **scores})


class Signal(pl.Callback):
    """Sends this process a signal in the hook `when` of the step, counted from 0."""

    def __init__(self, when: str, step: int) -> None:
        def send(trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGUSR1)

        setattr(self, when, send)


class Begun(pl.Callback):
    """The epochs that began."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append(trainer.current_epoch)


def make_trainer(folder: Path, history: History, *others: pl.Callback, **options: Any) -> pl.Trainer:
    callbacks = [Checkpoints(folder, history, "knn/top1"), *others, history]
    return trainer(folder, *callbacks, plugins=[WholeCheckpointIO()], enable_checkpointing=True, **options)


def fit(
    folder: Path,
    scores: list[float | None],
    epochs: int,
    *others: pl.Callback,
    start: Path | None = None,
    images: int = 20,
    **options: Any,
) -> Rows:
    history = Rows()
    run = make_trainer(folder, history, Scores(scores), *others, max_epochs=epochs, **options)
    run.fit(Lookup(), loader(split(images, 0)), ckpt_path=start, weights_only=True)
    return history


def kept(folder: Path) -> dict[str, int]:
    return {
        path.stem: torch.load(path, weights_only=True)["epoch"] + 1
        for path in sorted((folder / "checkpoints").iterdir())
    }


@pytest.mark.parametrize(
    ("scores", "best"), [([1, 3, 2, 3], 2), ([4, 3, 2, 1], 1), ([1, 2, 3, 4], 4), ([None, 5, None, None], 2)]
)
def test_last_previous_and_best(tmp_path: Path, scores: list[float | None], best: int) -> None:
    history = fit(tmp_path, scores, 4)
    assert kept(tmp_path) == {"best": best, "last": 4, "previous": 3}
    row = history.best("knn/top1")
    assert row is not None
    assert row["epoch"] == best


def test_nothing_scored_has_no_best(tmp_path: Path) -> None:
    assert fit(tmp_path, [None, None], 2).best("knn/top1") is None
    assert kept(tmp_path) == {"last": 2, "previous": 1}


def test_a_run_of_no_epochs_keeps_the_network_that_it_scored(tmp_path: Path) -> None:
    history = Rows()
    history.rows = [{"epoch": 0, "knn/top1": 1.0}]
    make_trainer(tmp_path, history, max_epochs=0).fit(Lookup(), loader(split(20, 0)))
    assert [path.stem for path in (tmp_path / "checkpoints").iterdir()] == ["last"]


@pytest.mark.parametrize("whitened", [True, False])
def test_the_whitening_of_a_last_epoch_that_is_scored_late_is_kept(tmp_path: Path, whitened: bool) -> None:
    """Its checkpoint was written before."""
    module = Lookup(Whitening(3, 2) if whitened else None)
    run = make_trainer(tmp_path, Rows(), max_epochs=2)
    run.fit(module, loader(split(20, 0)), loader(split(23, 1)))
    last = checkpoints.path_of(tmp_path, "last")
    trained, written = checkpoints.load(last), last.stat().st_mtime_ns
    if module.whitening:
        module.whitening.fit(torch.randn(50, 3))
    run.validate(module, loader(split(23, 1)), verbose=False)
    found = checkpoints.load(last)
    assert (last.stat().st_mtime_ns != written) == whitened
    assert found["global_step"] == trained["global_step"]
    assert found["state_dict"].keys() == trained["state_dict"].keys()
    changed = {name for name, value in found["state_dict"].items() if not value.equal(trained["state_dict"][name])}
    assert changed == ({"whitening.weight", "whitening.bias"} if whitened else set())
    assert all(found["state_dict"][name].equal(value) for name, value in module.state_dict().items())


def test_killed_between_the_last_and_the_best(tmp_path: Path) -> None:
    """The epoch that is gone on from was the best: it becomes so when the run goes on."""
    fit(tmp_path, [1, 2], 2)
    best, last = (checkpoints.path_of(tmp_path, name) for name in ("best", "last"))
    best.unlink()
    fit(tmp_path, [1, 2, 0], 3, start=last)
    assert kept(tmp_path) == {"best": 2, "last": 3, "previous": 2}


def test_killed_between_the_last_and_the_best_of_the_last_epoch(tmp_path: Path) -> None:
    """Nothing is left to train."""
    fit(tmp_path, [1, 2], 2)
    best, last = (checkpoints.path_of(tmp_path, name) for name in ("best", "last"))
    best.unlink()
    fit(tmp_path, [], 2, start=last)
    assert kept(tmp_path) == {"best": 2, "last": 2, "previous": 1}


def test_without_links_the_best_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", none)
    fit(tmp_path, [1, 0], 2)
    assert kept(tmp_path) == {"best": 1, "last": 2, "previous": 1}


def test_what_a_kill_left_of_the_best_is_never_written_into(tmp_path: Path) -> None:
    """It is another name of a checkpoint that is still there."""
    fit(tmp_path, [1, 2], 2)
    best, last = (checkpoints.path_of(tmp_path, name) for name in ("best", "last"))
    os.link(last, best.with_name(f".{best.name}.partial"))
    fit(tmp_path, [1, 2, 3], 3, start=last)
    assert kept(tmp_path) == {"best": 3, "last": 3, "previous": 2}


def test_a_write_that_fails_leaves_the_epoch_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, [1, 2], 2)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, [1, 2, 3], 3, start=checkpoints.path_of(tmp_path, "last"))
    found = checkpoints.find_last(tmp_path, 3)
    assert found is not None
    assert checkpoints.load(found)["epoch"] + 1 == 2


@pytest.mark.usefixtures("listening")
def test_a_signal_within_an_epoch_leaves_a_checkpoint_there_and_the_best_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the run goes on, and the last row is the best but the last checkpoint is not of it."""
    batches = len(loader(split(20, 0)))
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, [1, 2, 0], 3, Signal("on_train_batch_start", 2 * batches + 1))
    assert ended.value.code == 138
    said = capfd.readouterr()
    assert "SIGUSR1: ends when this step is kept, or this epoch scored" in said.out + said.err
    assert kept(tmp_path) == {"best": 2, "last": 3, "previous": 2}
    last = checkpoints.path_of(tmp_path, "last")
    found = checkpoints.load(last)
    assert found["global_step"] == 2 * batches + 2, "the step was finished"
    assert checkpoints.describe(found) == "epoch 3, which is not whole yet, after 2 batches"
    with pytest.raises(ValueError, match="come to epoch 3"):
        checkpoints.find_last(tmp_path, 2)
    signals._asked = 0
    rows = fit(tmp_path, [1, 2, 0], 3, start=last).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert kept(tmp_path) == {"best": 2, "last": 3, "previous": 3}
    assert checkpoints.describe(checkpoints.load(last)) == "epoch 3"
    best = checkpoints.load(checkpoints.path_of(tmp_path, "best"))
    assert best["global_step"] == 2 * batches, "and not that within the third epoch"


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("when", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_signal_after_the_last_step_waits_for_the_epoch(tmp_path: Path, when: str) -> None:
    batches, begun = len(loader(split(20, 0))), Begun()
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, [1, 2, 3], 3, Signal(when, 2 * batches), begun)
    assert ended.value.code == 138
    assert begun.epochs == [0, 1], "and for no other"
    assert kept(tmp_path) == {"best": 2, "last": 2, "previous": 1}
    assert checkpoints.describe(checkpoints.load(checkpoints.path_of(tmp_path, "last"))) == "epoch 2"


@pytest.mark.usefixtures("listening")
def test_a_signal_before_the_first_step_of_an_epoch_ends_at_once(tmp_path: Path) -> None:
    batches = len(loader(split(20, 0)))
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, [1, 2, 3], 3, Signal("on_train_epoch_start", 2 * batches))
    assert ended.value.code == 138
    assert kept(tmp_path) == {"best": 2, "last": 2, "previous": 1}


@pytest.mark.usefixtures("listening")
def test_a_signal_waits_for_the_optimizer_where_gradients_gather(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, [1], 1, Signal("on_train_batch_end", 0), images=40, accumulate_grad_batches=3)
    found = checkpoints.load(checkpoints.path_of(tmp_path, "last"))
    assert found["global_step"] == 1
    assert checkpoints.describe(found) == "epoch 1, which is not whole yet, after 3 batches"
