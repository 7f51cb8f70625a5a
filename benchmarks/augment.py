"""Time of the full augmentation: ours, over a batch, against torchvision's, image by image.

`python -m benchmarks.augment` prints milliseconds per 1,000 views, medians of interleaved rounds, and their ratio.
"""

import statistics
import time

import torch
from sklearn.datasets import load_sample_images
from torchvision import transforms

from src.augmentations.random import (
    Augmentation,
    ColorJitter,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

BATCH, ROUNDS = 256, 5


def photographs(size: int) -> torch.Tensor:
    """uint8 `(256, size, size, 3)`: crops of two photographs."""
    whole = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    return torch.stack([whole[i % 2, i // 2 : i // 2 + size, i : i + size] for i in range(BATCH)])


def main() -> None:
    print(f"{'pixels':>6} {'ours':>10} {'torchvision':>12}  ms per 1,000 views, {torch.get_num_threads()} threads")
    for size in (32, 96, 227):
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

        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            start = time.perf_counter()
            ours(images, generator)
            middle = time.perf_counter()
            torch.stack([theirs(picture) for picture in pictures])
            seconds[0].append(middle - start)
            seconds[1].append(time.perf_counter() - middle)
        mine, peer = (1e6 * statistics.median(times) / BATCH for times in seconds)
        print(f"{size:6} {mine:10.1f} {peer:12.1f}  {peer / mine:.1f} times as fast")


if __name__ == "__main__":
    main()
