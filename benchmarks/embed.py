"""Embedding a folder of JPEGs, against a script with a DataLoader: `python -m benchmarks.embed [COUNT]`."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.store import write_photographs
from benchmarks.timing import heading, medians, report
from src.backbones.head import Head
from src.backbones.inception import GoogLeNet
from src.embedder import Embedder, Encoder
from src.indexing.building import build
from src.indexing.sources import find_source
from src.running.hardware import select_precision, settle

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
MEAN, SIDE, SIZE, BATCH = (122.7717, 115.9465, 102.9801), 256, 227, 64


def make_embedder(precision: str) -> Embedder:
    """The network of the fine-grained presets, untrained: it takes as long."""
    torch.manual_seed(0)
    encoder = Encoder(GoogLeNet(), Head(1024, 128), SIZE, MEAN, (1, 1, 1))
    config = OmegaConf.create(
        {"dataset": {"size": SIDE, "resample": "bilinear", "eval_batch_size": BATCH}, "input": {"size": SIZE}}
    )
    return Embedder(encoder, 128, config, Path("benchmark"), ("last", "none"), "embedding", "cpu", precision)


class Files(Dataset[torch.Tensor]):
    """Image by image, as torchvision's documentation has it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [v2.Resize((SIDE, SIDE)), v2.CenterCrop(SIZE), v2.PILToTensor(), v2.ToDtype(torch.float32)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.paths[number]) as file:
            image: torch.Tensor = self.transform(file.convert("RGB"))
        return image - torch.tensor(MEAN).view(3, 1, 1)


def script(embedder: Embedder, paths: list[Path], fast: bool) -> Callable[[], torch.Tensor]:
    """What one would write: a DataLoader with two workers; `fast`: with autocast and channels last."""
    layout = torch.channels_last if fast else torch.contiguous_format
    backbone, head = embedder.encoder.backbone, embedder.encoder.head
    assert head is not None

    def embed() -> torch.Tensor:
        network = backbone.to(memory_format=layout)
        found = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, fast):
            for images in DataLoader(Files(paths), BATCH, num_workers=2):
                found.append(head(network(images.to(memory_format=layout))))
        backbone.to(memory_format=torch.channels_last)
        return torch.cat(found).float()

    return embed


def main() -> None:
    settle()
    precision = select_precision("auto", "cpu")
    heading(f"Embedding {COUNT:,} JPEGs of 400 x 300 by Inception-V1 at {SIZE} pixels, {precision}, batches of {BATCH}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder / "photographs", COUNT)
        embedder, source = make_embedder(precision), find_source(str(folder / "photographs"))
        squares = np.stack([embedder.read(path) for path in paths[:BATCH]])
        exact = make_embedder("32-true")
        assert np.allclose(exact.encode(squares), script(exact, paths[:BATCH], fast=False)().numpy(), atol=2e-2)

        def ours() -> None:
            build(embedder, source, folder / "index")
            shutil.rmtree(folder / "index")

        def read() -> None:
            with ThreadPoolExecutor(2) as pool:
                for _ in pool.map(lambda entry: source.read(entry, SIDE, "bilinear")[1], source):
                    pass

        def forward() -> None:
            for _ in range(0, COUNT, BATCH):
                embedder.encode(squares)

        contenders = {
            "ours": ours,
            "a DataLoader, float32": script(embedder, paths, fast=False),
            "a DataLoader, autocast, channels last": script(embedder, paths, fast=True),
            "the bound: the network alone": forward,
            "reading alone": read,
        }
        report("from files to vectors", medians(contenders, rounds=0))


if __name__ == "__main__":
    main()
