"""Time of the full augmentation: ours, over a batch, against torchvision's, image by image.

`python -m benchmarks.augment`
"""

import torch
from sklearn.datasets import load_sample_images
from torchvision import transforms

from benchmarks.timing import heading, medians, report
from src.augmentations.random import (
    Augmentation,
    ColorJitter,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

VIEWS, ROUNDS = 250, 5


def photographs(size: int) -> torch.Tensor:
    """uint8 `(250, size, size, 3)`: crops of two photographs."""
    whole = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return torch.stack([whole[i % 2, i // 2 : i // 2 + size, i : i + size] for i in range(VIEWS)])


def compare(size: int) -> None:
    """Time both at one size, once they are seen to do the same on average."""
    ours = Augmentation(
        size,
        crop=RandomResizedCrop(size, (0.2, 1.0), (3 / 4, 4 / 3)),
        jitter=ColorJitter(0.4, 0.4, 0.4, 0.4),
        gray=RandomGrayscale(0.2),
        flip=RandomHorizontalFlip(0.5),
    )
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.2, 1.0)),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.4),
            transforms.RandomGrayscale(0.2),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
        ]
    )
    images = photographs(size)
    pictures = [transforms.functional.to_pil_image(image.permute(2, 0, 1)) for image in images]
    generator = torch.Generator().manual_seed(0)
    means = ours(images, generator).mean() / 255, torch.stack([theirs(picture) for picture in pictures]).mean()
    assert abs(means[0] - means[1]) < 0.05, f"the two differ: mean {means[0]:.3f} and {means[1]:.3f}"
    contenders = {
        "ours": lambda: ours(images, generator),
        "torchvision": lambda: torch.stack([theirs(picture) for picture in pictures]),
    }
    report(f"{VIEWS} views of {size} pixels", medians(contenders, ROUNDS))


def main() -> None:
    heading("The full augmentation")
    for size in (32, 96, 227):
        compare(size)


if __name__ == "__main__":
    main()
