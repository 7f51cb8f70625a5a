"""Time of the full augmentation: ours, over a batch, against Kornia's and, image by image, torchvision's.

`python -m benchmarks.augment`
"""

import kornia.augmentation as kornia
import torch
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.timing import heading, medians, report
from src.augmentations.random import (
    Augmentation,
    ColorJitter,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

VIEWS, ROUNDS = 1000, 5
SCALE, RATIO, JITTER = (0.2, 1.0), (3 / 4, 4 / 3), (0.4, 0.4, 0.4, 0.4)


def photographs(size: int) -> torch.Tensor:
    """uint8 `(1000, size, size, 3)`: crops of two photographs."""
    whole = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return torch.stack([whole[i % 2, i % 200 : i % 200 + size, i // 3 : i // 3 + size] for i in range(VIEWS)])


def compare(size: int) -> None:
    """Time all at one size, once they are seen to do the same on average."""
    ours = Augmentation(
        size,
        crop=RandomResizedCrop(size, SCALE, RATIO),
        jitter=ColorJitter(*JITTER),
        gray=RandomGrayscale(0.2),
        flip=RandomHorizontalFlip(0.5),
    )
    batched = torch.nn.Sequential(
        kornia.RandomResizedCrop((size, size), SCALE, RATIO),
        kornia.ColorJitter(*JITTER, p=1.0),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomHorizontalFlip(0.5),
    )
    pillow = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, SCALE),
            transforms.ColorJitter(*JITTER),
            transforms.RandomGrayscale(0.2),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
        ]
    )
    tensors = v2.Compose(
        [
            v2.RandomResizedCrop(size, SCALE),
            v2.ColorJitter(*JITTER),
            v2.RandomGrayscale(0.2),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    images = photographs(size)
    planes = images.permute(0, 3, 1, 2).contiguous()
    pictures = [transforms.functional.to_pil_image(image) for image in planes]
    generator = torch.Generator().manual_seed(0)
    contenders = {
        "ours": lambda: ours(images, generator),
        "Kornia": lambda: batched(planes / 255),
        "torchvision v2, tensors one by one": lambda: torch.stack([tensors(image) for image in planes]),
        "torchvision, PIL images one by one": lambda: torch.stack([pillow(picture) for picture in pictures]),
    }
    means = {name: call().mean() / (255 if name == "ours" else 1) for name, call in contenders.items()}
    spread = max(means.values()) - min(means.values())
    assert spread < 0.02, f"they differ: {means}"
    report(f"{VIEWS:,} views of {size} pixels", medians(contenders, ROUNDS if size < 200 else 1))


def main() -> None:
    heading("The full augmentation")
    torch.manual_seed(0)
    for size in (32, 96, 227):
        compare(size)


if __name__ == "__main__":
    main()
