"""Time of the full augmentation: ours, over a batch, against Kornia's and, image by image, torchvision's on the CPU.

`python -m benchmarks.augment`
"""

from collections.abc import Callable
from contextlib import ExitStack

import kornia.augmentation as kornia
import torch
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.timing import DEVICE, apart, heading, medians, report
from benchmarks.train_step import JITTER, SCALE, one_by_one
from src.augmentations.random import (
    Augmentation,
    ColorJitter,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from src.running.hardware import settle

Call = Callable[[], torch.Tensor]

VIEWS, ROUNDS = 1000, 5
RATIO = (3 / 4, 4 / 3)


def photographs(size: int) -> torch.Tensor:
    """uint8 `(1000, size, size, 3)`: crops of two photographs."""
    whole = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return torch.stack([whole[i % 2, i % 200 : i % 200 + size, i // 3 : i // 3 + size] for i in range(VIEWS)])


def ours(size: int) -> Call:
    settle()
    augmentation = Augmentation(
        size,
        crop=RandomResizedCrop(size, SCALE, RATIO),
        jitter=ColorJitter(*JITTER),
        gray=RandomGrayscale(0.2),
        flip=RandomHorizontalFlip(0.5),
    )
    images, generator = photographs(size).to(DEVICE), torch.Generator().manual_seed(0)
    return lambda: augmentation(images, generator) / 255


def by_kornia(size: int) -> Call:
    augmentation = torch.nn.Sequential(
        kornia.RandomResizedCrop((size, size), SCALE, RATIO),
        kornia.ColorJitter(*JITTER, p=1.0),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomHorizontalFlip(0.5),
    )
    planes = photographs(size).permute(0, 3, 1, 2).contiguous().to(DEVICE)
    return lambda: augmentation(planes / 255)


def by_tensors(size: int) -> Call:
    transform = one_by_one(v2, size, v2.ToDtype(torch.float32, scale=True))
    planes = photographs(size).permute(0, 3, 1, 2).contiguous()
    return lambda: torch.stack([transform(image) for image in planes])


def by_pictures(size: int) -> Call:
    transform = one_by_one(transforms, size, transforms.ToTensor())
    pictures = [transforms.functional.to_pil_image(image.permute(2, 0, 1)) for image in photographs(size)]
    return lambda: torch.stack([transform(picture) for picture in pictures])


CONTENDERS = {
    "ours": ours,
    "Kornia": by_kornia,
    "torchvision v2, tensors one by one": by_tensors,
    "torchvision, PIL images one by one": by_pictures,
}


def repeated(make: Callable[[int], Call], size: int, times: int) -> Callable[[], None]:
    call = make(size)

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def compare(size: int) -> None:
    """Time all at one size, each in a process of its own, once they are seen to do the same on average."""
    means = {name: float(make(size)().mean()) for name, make in CONTENDERS.items()}
    assert max(means.values()) - min(means.values()) < 0.02, f"they differ: {means}"
    times = 10 if size < 64 else 1  # what takes milliseconds is too short to time once
    with ExitStack() as processes:
        contenders = {
            name: processes.enter_context(apart(repeated, make, size, times)) for name, make in CONTENDERS.items()
        }
        seconds = medians(contenders, ROUNDS if size < 200 else 1)
    report(f"{VIEWS:,} views of {size} pixels", {name: total / times for name, total in seconds.items()})


def main() -> None:
    heading("The full augmentation")
    torch.manual_seed(0)
    for size in (32, 96, 227):
        compare(size)


if __name__ == "__main__":
    main()
