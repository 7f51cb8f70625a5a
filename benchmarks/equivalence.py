"""Does the fast path learn what a plain one learns? kNN of both after a few epochs: `python -m benchmarks.equivalence`.

Ours is `python -m src.train`: batched augmentation, bfloat16. The other has torchvision's transforms image by image,
float32 and a loop. Both train a slim ResNet-18 on the same 5,000 images of CIFAR-10, with three seeds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import DEVICE, heading
from benchmarks.train_step import BATCH, configure, published
from src.assemble import assemble
from src.backbones.head import Head
from src.backbones.resnet import resnet18
from src.metrics.knn import WeightedKNN

EPOCHS, SEEDS, LIMIT = 5, (0, 1, 2), 5000
OVERRIDES = ["experiment=cifar10_paper", "backbone=resnet18_slim", f"dataset.limit={LIMIT}"]


def ours(seed: int, folder: Path) -> float:
    options = [f"dataset.batch_size={BATCH}", f"seed={seed}", f"trainer.max_epochs={EPOCHS}", "logger=none"]
    command = [sys.executable, "-m", "src.train", *OVERRIDES, *options, f"run_dir={folder / str(seed)}"]
    subprocess.run([*command, f"trainer.check_val_every_n_epoch={EPOCHS}"], check=True, capture_output=True)
    return json.loads((folder / str(seed) / "results.json").read_text())["last"]["knn/top1"]


def plain(seed: int) -> float:
    torch.manual_seed(seed)
    datamodule, _, _ = assemble(configure(*OVERRIDES), 1)
    assert datamodule.store is not None
    network = nn.Sequential(resnet18(16), Head(128, 128))
    epoch = published(datamodule.store.splits["train"].images[datamodule.train_rows].numpy(), network, None)
    for _ in range(EPOCHS):
        epoch()
    network.eval()

    @torch.no_grad()
    def embed(number: int) -> tuple[Tensor, Tensor]:
        split = ("test", "train")[number]
        batches = [datamodule.clean(batch, split) for batch in datamodule.val_dataloader()[number]]
        labels = torch.cat([batch["label"] for batch in batches])
        return torch.cat([network(batch["image"].to(DEVICE)).cpu() for batch in batches]), labels

    metric = WeightedKNN()
    metric.update(*embed(0), *embed(1))
    return float(metric.compute()["top1"])


def main() -> None:
    heading(f"kNN top-1 after {EPOCHS} epochs on {LIMIT:,} images of CIFAR-10: seeds, mean and standard deviation")
    with tempfile.TemporaryDirectory() as folder:
        fast = [ours(seed, Path(folder)) for seed in SEEDS]
    slow = [plain(seed) for seed in SEEDS]
    cells = []
    for scores in (fast, slow):
        each = ", ".join(f"{score:.2f}" for score in scores)
        cells.append(f"{each}: {statistics.mean(scores):.2f} +- {statistics.stdev(scores):.2f}")
    print(f"| kNN top-1, % | {cells[0]} | torchvision's transforms, float32, a plain loop {cells[1]} |")


if __name__ == "__main__":
    main()
