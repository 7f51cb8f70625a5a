"""What Lightning and all the callbacks add to a training step: `python -m benchmarks.overhead`, on CIFAR-10."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from benchmarks.timing import heading, report
from benchmarks.train_step import bare, configure
from src.assemble import assemble
from src.callbacks.history import History
from src.callbacks.progress import Progress
from src.callbacks.refresh import Refresh
from src.callbacks.steps import Steps

EPOCHS = 5


class InTurn(pl.Callback):
    """Times the steps of each epoch, and after them as many of the bare loop."""

    def __init__(self, bare_loop: Callable[[], None]) -> None:
        self.bare_loop = bare_loop
        self.seconds: dict[str, list[float]] = {"ours": [], "a bare loop over the same parts": []}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        middle = time.perf_counter()
        self.bare_loop()
        for times, seconds in zip(
            self.seconds.values(), (middle - self.start, time.perf_counter() - middle), strict=True
        ):
            times.append(seconds)


def compare(backbone: str, steps: int) -> None:
    config: Any = configure("dataset=cifar10", f"backbone={backbone}")
    datamodule, module, _ = assemble(config, 1)
    turns = InTurn(bare(config, steps))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            precision="bf16-mixed",
            max_epochs=EPOCHS + 1,
            limit_train_batches=steps,
            limit_val_batches=0,
            callbacks=[turns, Refresh(0), Steps(), History(), Progress(), ModelCheckpoint(folder)],
            default_root_dir=folder,
            logger=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        with redirect_stdout(io.StringIO()):
            trainer.fit(module, datamodule)
    report(f"{backbone}: {steps} steps", {name: statistics.median(times[1:]) for name, times in turns.seconds.items()})


def main() -> None:
    heading("Lightning with all the callbacks, batches of 128 images in two views")
    compare("resnet18", 5)
    compare("resnet18_slim", 30)


if __name__ == "__main__":
    main()
