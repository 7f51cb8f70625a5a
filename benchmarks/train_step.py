"""Images a second of a training step, from the stored images to the updated weights, and how near its bound that is.

`python -m benchmarks.train_step`: ResNet-18, batch 128, two views, on CIFAR-10, which it fetches the first time. On a
GPU, where all is faster and starting workers would count, 200 steps, and ours besides compiled, and by CUDA graphs.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.timing import DEVICE, apart, heading, medians, report
from src.assemble import assemble
from src.backbones.head import Head
from src.backbones.resnet import SmallImageResNet, resnet18
from src.datamodules.base import StoreDataModule
from src.datamodules.store import read_store
from src.methods.invariant_spreading import invariant_spreading_loss
from src.methods.simclr import nt_xent_loss
from src.running.hardware import settle

BATCH, WORKERS = 128, os.cpu_count() or 1
STEPS, ROUNDS = (3, 5) if DEVICE.type == "cpu" else (200, 1)
SCALE, JITTER = (0.2, 1.0), (0.4, 0.4, 0.4, 0.4)
CONF = Path(__file__).resolve().parent.parent / "conf"


class Pictures(Dataset[tuple[Any, int]]):
    """PIL images of the store, transformed one by one, as torchvision's datasets do."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), index


def transcription(embeddings: Tensor, temperature: float = 0.1) -> Tensor:
    """Equation (7) as it reads, both gradients, exponentials and all."""
    size = len(embeddings)
    pair = torch.arange(size, device=embeddings.device).roll(size // 2)
    other = 1 - torch.eye(size, device=embeddings.device)
    exponentials = (embeddings @ embeddings.T / temperature).exp() * other
    probability = exponentials / exponentials.sum(1, keepdim=True)
    negative = other.clone()
    row = torch.arange(size)
    negative[row, pair] = 0
    return (-probability[row, pair].log() - ((1 - probability).log() * negative).sum(1)).mean()


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=5e-4)


def draw(datamodule: StoreDataModule, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views of each image of `count` batches, and the images' indices."""
    generator = torch.Generator().manual_seed(0)
    for batch in islice(datamodule.train_dataloader(), count):
        images, index = (batch[name].to(DEVICE, non_blocking=True) for name in ("image", "index"))
        yield datamodule.augmentation(images.repeat(2, 1, 1, 1), generator, datamodule.finish), index


def bare(config: Any, count: int) -> Callable[[], None]:
    """The parts that `src.train` puts together, stepped by hand `count` times; `benchmarks.overhead` adds Lightning."""
    settle()
    datamodule, module, _ = assemble(config, 1)
    optimizer = sgd(module.to(DEVICE))
    if config.compile:
        module.backbone.compile()

    def steps() -> None:
        for views, index in draw(datamodule, count):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                if module.captured:
                    module.captured.prepare(views)
                embeddings = module.head((module.captured or module.backbone)(views))
            loss = module.method(embeddings, index)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def one_by_one(library: Any, size: int, *more: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The augmentation of a single image by `torchvision.transforms` or its `v2`."""
    return library.Compose(
        [
            library.RandomResizedCrop(size, scale=SCALE),
            library.ColorJitter(*JITTER),
            library.RandomGrayscale(0.2),
            library.RandomHorizontalFlip(0.5),
            *more,
        ]
    )


TRANSFORM = one_by_one(
    transforms,
    32,
    transforms.ToTensor(),
    transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
)


def published(images: np.ndarray, network: nn.Module, count: int | None) -> Callable[[], None]:
    """As the authors' code goes about it: per-image transforms in workers, float32, the loss written out.

    Makes what trains for `count` steps, or for one epoch.
    """
    optimizer = sgd(network.to(DEVICE))
    loader = load(Pictures(images, lambda image: (TRANSFORM(image), TRANSFORM(image))))

    def steps() -> None:
        for (first, second), _ in islice(loader, count):
            loss = transcription(network(torch.cat([first, second]).to(DEVICE, non_blocking=True)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def load(pictures: Pictures) -> DataLoader[Any]:
    pinned = DEVICE.type == "cuda"
    return DataLoader(
        pictures, BATCH, True, drop_last=True, num_workers=WORKERS, multiprocessing_context="fork", pin_memory=pinned
    )


def published_resnet(config: Any) -> Callable[[], None]:
    return published(stored(config), nn.Sequential(resnet18(), Head(512, 128)), STEPS)


def stored(config: Any) -> np.ndarray:
    return read_store(Path(config.cache_dir).expanduser() / "cifar10").splits["train"].images.numpy()


def lightlys_simclr(images: np.ndarray) -> tuple[SmallImageResNet, nn.Module, nn.Module, DataLoader[Any]]:
    """lightly's recipe: its projection head and loss on the same network, and a loader with its transform."""
    loader = load(Pictures(images, SimCLRTransform(input_size=32, gaussian_blur=0.0)))
    return resnet18().to(DEVICE), SimCLRProjectionHead(512, 512, 128).to(DEVICE), NTXentLoss(), loader


def simclr_of_lightly(config: Any) -> Callable[[], None]:
    """Steps of lightly's recipe, float32."""
    backbone, head, criterion, loader = lightlys_simclr(stored(config))
    optimizer = sgd(backbone, head)

    def steps() -> None:
        for views, _ in islice(loader, STEPS):
            first, second = (view.to(DEVICE, non_blocking=True) for view in views)
            loss = criterion(head(backbone(first)), head(backbone(second)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def convolutions(winograd: bool, channels: int | None = None) -> Callable[[], None]:
    """Nothing but the network's convolutions, forward and backward, at the same shapes, bfloat16 and channels last.

    With `channels` only those that go from so many to as many.
    """
    settle()
    network = resnet18(winograd=winograd).to(memory_format=torch.channels_last)
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: shapes.append((layer, inputs[0].shape)))
        for layer in layers
    ]
    with torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    work = []
    for number, (layer, shape) in enumerate(shapes):
        if channels not in (None, layer.in_channels) or channels not in (None, layer.out_channels):
            continue
        layer = copy.deepcopy(layer).bfloat16()
        images = torch.randn(2 * BATCH, *shape[1:], dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        images.requires_grad_(number > 0)  # nobody asks for the gradient of the images themselves
        work.append((layer, images, torch.randn_like(layer(images))))

    def steps() -> None:
        for _ in range(STEPS):
            for layer, images, gradient in work:
                layer(images).backward(gradient)
                layer.weight.grad = images.grad = None

    return steps


def views(config: Any) -> Callable[[], None]:
    """What comes before the network: batches gathered, two views of each image drawn."""
    settle()
    datamodule, _, _ = assemble(config, 1)

    def steps() -> None:
        for _ in draw(datamodule, STEPS):
            pass

    return steps


def check() -> None:
    """The transcription and lightly's loss equal ours."""
    embeddings = nn.functional.normalize(torch.randn(64, 128), dim=1)
    torch.testing.assert_close(transcription(embeddings), invariant_spreading_loss(embeddings, stop_gradient=False))
    theirs = NTXentLoss(temperature=0.5)(*embeddings.chunk(2))
    torch.testing.assert_close(nt_xent_loss(embeddings, 0.5), theirs)


def configure(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, f"dataset.batch_size={BATCH}"])


def main() -> None:
    heading(f"Training steps: ResNet-18, batches of {BATCH} images in two views, CIFAR-10")
    torch.manual_seed(0)
    check()
    config = configure("experiment=cifar10_paper")
    assemble(config, 1)  # prepares the data
    makers: dict[str, tuple[Any, ...]] = {
        "ours": (bare, config, STEPS),
        "as published: torchvision image by image, float32": (published_resnet, config),
        "lightly's SimCLR": (simclr_of_lightly, config),
    }
    if DEVICE.type == "cpu":
        makers |= {
            "torch's convolutions alone": (convolutions, False),
            "our convolutions alone": (convolutions, True),
        }
    else:
        for option in ("compile=true", "graph=true"):
            makers[f"ours, {option}"] = (bare, configure("experiment=cifar10_paper", option), STEPS)
    with ExitStack() as processes:
        contenders = {name: processes.enter_context(apart(*maker)) for name, maker in makers.items()}
        seconds = medians(contenders, ROUNDS)
    report(f"{STEPS} steps", seconds)
    with apart(views, config) as before:
        (time,) = medians({"views": before}, ROUNDS).values()
    print(f"| of these, gathering and augmenting | {1e3 * time:.0f} ms, {time / seconds['ours']:.1%} | |", flush=True)
    if DEVICE.type == "cpu":
        for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
            with apart(convolutions, True, channels) as mine, apart(convolutions, False, channels) as theirs:
                times = medians({"ours": mine, "torch's": theirs}, ROUNDS)
            report(f"of these, convolutions of {channels} channels, {size} x {size}", times)
    for name, time in seconds.items():
        print(f"| {name} | {STEPS * BATCH / time:.1f} images/s | |")


if __name__ == "__main__":
    main()
