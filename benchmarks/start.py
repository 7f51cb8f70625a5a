"""Seconds until the command line answers, and until the first training step: `python -m benchmarks.start`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.timing import heading, medians, report

TRAIN = ["-m", "src.train"]
ONE_STEP = ["logger=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1"]
PEERS = {
    "help": ["-c", "import hydra"],
    "job": ["-c", "import hydra"],
    "step": ["-c", "import torch, torchvision, torchmetrics, pytorch_lightning, matplotlib.figure"],
}


def python(*arguments: str) -> Callable[[], object]:
    environment = os.environ | {"WANDB_MODE": "disabled"}
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def main() -> None:
    heading("Starting")
    with tempfile.TemporaryDirectory() as folder:
        runs = f"run_dir={folder}/${{now:%H-%M-%S-%f}}"
        step = [*TRAIN, *ONE_STEP, runs, "protocol.metrics.knn.k=1"]
        peer = "importing Hydra alone"
        report("--help", medians({"ours": python(*TRAIN, "--help"), peer: python(*PEERS["help"])}, 5))
        report("--cfg job", medians({"ours": python(*TRAIN, "--cfg", "job"), peer: python(*PEERS["job"])}, 5))
        peer = "importing torch, Lightning and what they need"
        seconds = medians({"ours": python(*step), peer: python(*PEERS["step"])}, 3)
        report("digits: a run of one step, from the prompt to the results", seconds)


if __name__ == "__main__":
    main()
