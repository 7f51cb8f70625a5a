"""What Lightning and a run's callbacks add to a training step: `python -m benchmarks.overhead`, on CIFAR-10.

All of `make_trainer` but the probe, which is a classifier that trains besides, and has a row of its own.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.timing import ACCELERATOR, heading, report, wait
from benchmarks.train_step import bare, configure
from src.assemble import assemble, make_trainer
from src.callbacks.history import History

EPOCHS = 5


class InTurn(pl.Callback):
    """Times the steps of each epoch, and after them as many of the bare loop."""

    def __init__(self, bare_loop: Callable[[], None]) -> None:
        self.bare_loop = bare_loop
        self.seconds: dict[str, list[float]] = {"ours": [], "a bare loop over the same parts": []}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        middle = time.perf_counter()
        self.bare_loop()
        wait()
        for times, seconds in zip(
            self.seconds.values(), (middle - self.start, time.perf_counter() - middle), strict=True
        ):
            times.append(seconds)


def compare(backbone: str, steps: int, *overrides: str) -> None:
    options = [f"+trainer.limit_train_batches={steps}", "+trainer.limit_val_batches=0", "callbacks.pictures=null"]
    options += [f"trainer.max_epochs={EPOCHS + 1}", "trainer.precision=bf16-mixed"]
    options += [f"trainer.accelerator={ACCELERATOR}"]
    config: Any = configure("dataset=cifar10", f"backbone={backbone}", *options, *overrides)
    datamodule, module, evaluation = assemble(config, 1)
    turns = InTurn(bare(config, steps))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        trainer = make_trainer(config, Path(folder), module, evaluation, History(), None, None)
        trainer.callbacks.insert(0, turns)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule)
    seconds = {name: statistics.median(times[1:]) for name, times in turns.seconds.items()}
    report(f"{backbone}{' and its probe' * (not overrides)}: {steps} steps", seconds)


def main() -> None:
    heading("Lightning with a run's callbacks, batches of 128 images in two views")
    for backbone, steps in (("resnet18", 5), ("resnet18_slim", 30)) if ACCELERATOR == "cpu" else (("resnet18", 100),):
        compare(backbone, steps, "callbacks.probe=null")
        compare(backbone, steps)


if __name__ == "__main__":
    main()
