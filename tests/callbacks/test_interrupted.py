"""Real runs of methods that keep something of an epoch, ended by a signal within it: they go on to the bit."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from src.assemble import assemble, make_trainer
from src.callbacks.history import History
from src.running import checkpoints, signals
from tests.chaos import METHODS, TIMES, differences
from tests.conftest import ROOT

SMALL = (
    "input.size=16",
    "dataset.limit=60",
    "dataset.batch_size=12",
    "protocol.metrics.knn.k=5",
    "callbacks.pictures=null",
    "trainer.max_epochs=2",
    "logger=none",
)
HERE = ("trainer.precision=32-true", "trainer.enable_progress_bar=false", "trainer.deterministic=false")


class Signal(pl.Callback):
    """Sends this process SIGTERM in the step `step`, counted from 0."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


Train = Callable[[Path, int | None], History]


@pytest.fixture(params=METHODS)
def train(request: pytest.FixtureRequest, cache: Path, listening: None) -> Train:
    """Train in a folder, or go on there, to the end or to a signal in a step."""

    def call(folder: Path, step: int | None) -> History:
        signals._asked = 0
        folder.mkdir(exist_ok=True)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            overrides = [*SMALL, *METHODS[request.param], f"cache_dir={cache}", f"run_dir={folder}"]
            config = compose("train", [*overrides, *HERE])
        pl.seed_everything(config.seed, verbose=False)
        datamodule, module, evaluation = assemble(config, 1)
        history = History()
        trainer = make_trainer(config, folder, module, evaluation, history, None, None)
        trainer.callbacks.insert(0, Signal(step))  # type: ignore[attr-defined]
        last = checkpoints.find_last(folder, config.trainer.max_epochs)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        return history

    return call


def test_goes_on_within_an_epoch_to_the_bit(train: Train, tmp_path: Path) -> None:
    """Five steps an epoch: ended in the second of the first, and twice in the second, once after one more step."""
    whole = train(tmp_path / "whole", None)
    folder = tmp_path / "ended"
    for step, batches, epoch in ((1, 2, 1), (6, 2, 2), (7, 3, 2)):
        with pytest.raises(SystemExit) as ended:
            train(folder, step)
        assert ended.value.code == 143
        found = checkpoints.load(checkpoints.path_of(folder, "last"))
        assert found["global_step"] == step + 1
        assert checkpoints.describe(found) == f"epoch {epoch}, which is not whole yet, after {batches} batches"
    rest = train(folder, None)
    for name in ("last", "best"):
        kept = [torch.load(f / "checkpoints" / f"{name}.ckpt", weights_only=True) for f in (folder, tmp_path / "whole")]
        for part in kept:
            del part["steps"]["seconds"]  # of no matter
        for what in ("state_dict", "optimizer_states", "lr_schedulers", "steps", "global_step", "epoch"):
            assert differences(kept[0][what], kept[1][what], f"{name}.{what}") == []
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.rows] for run in (rest, whole)]
    assert rows[0] == rows[1]
    assert [row.keys() for row in rest.rows] == [row.keys() for row in whole.rows], "what was timed, too"
    assert [leg["epochs"] for leg in rest.legs] == [0, 1, 0, 1]
