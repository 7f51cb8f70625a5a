"""The distributions of the parameters against torchvision's own draws, and one draw for every image."""

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor
from torchvision import transforms

from src.augmentations.functional import HUE, adjust_hue, blend
from src.augmentations.random import (
    Augmentation,
    ColorJitter,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

DRAWS = 4000
P = 1e-4  # a right implementation fails one run in ten thousand, were the seeds not fixed


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def same_distribution(ours: Tensor, theirs: Tensor) -> bool:
    return stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > P


@pytest.mark.parametrize(("height", "width"), [(32, 32), (256, 256), (40, 200), (200, 40)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.9, 1.0)])
def test_crop_boxes(height: int, width: int, scale: tuple[float, float]) -> None:
    ratio = (3 / 4, 4 / 3)
    (ours,) = RandomResizedCrop(32, scale, ratio).draw(DRAWS, height, width, generator())
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(DRAWS)]
    )
    for column, name in enumerate(["top", "left", "height", "width"]):
        assert same_distribution(ours[:, column], theirs[:, column]), name
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]), "area"
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 40)])
def test_crop_corners(height: int, width: int) -> None:
    (corners,) = RandomCrop(28).draw(DRAWS, height, width, generator())
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([transforms.RandomCrop.get_params(image, (28, 28))[:2] for _ in range(DRAWS)])
    for column in range(2):
        assert same_distribution(corners[:, column], theirs[:, column])
        assert corners[:, column].max() == (height, width)[column] - 28
    with pytest.raises(ValueError, match="size=33 is larger than the 32x32"):
        RandomCrop(33).draw(1, 32, 32, generator())


def test_jitter() -> None:
    strengths, order = ColorJitter(0.4, 1.5, 0.3, 0.1).draw(DRAWS, 32, 32, generator())
    theirs = transforms.ColorJitter(0.4, 1.5, 0.3, 0.1)
    torch.manual_seed(0)
    draws = [
        transforms.ColorJitter.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
        for _ in range(DRAWS)
    ]
    for column in range(4):
        assert same_distribution(strengths[:, column], torch.tensor([draw[1 + column] for draw in draws]))
    # All 24 orders, equally often.
    codes = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > P


@pytest.mark.parametrize("operation", [RandomGrayscale(0.2), RandomHorizontalFlip(0.5)])
def test_coins(operation: RandomGrayscale | RandomHorizontalFlip) -> None:
    (mask,) = operation.draw(DRAWS, 32, 32, generator())
    assert stats.binomtest(int(mask.sum()), DRAWS, operation.p).pvalue > P


def test_every_image_has_its_own_draw() -> None:
    augmentation = Augmentation(
        32, crop=RandomResizedCrop(32, (0.2, 1.0), (0.75, 4 / 3)), jitter=ColorJitter(0.4, 0.4, 0.4, 0.4)
    )
    image = torch.randint(0, 256, (1, 32, 32, 3), generator=generator(), dtype=torch.uint8)
    views = augmentation(image.repeat(64, 1, 1, 1), generator())
    assert views.shape == (64, 3, 32, 32)
    assert len(views.flatten(1).unique(dim=0)) == 64
    assert torch.equal(views, augmentation(image.repeat(64, 1, 1, 1), generator()))


def test_jitter_applies_each_order() -> None:
    """The batch at once equals image by image, one operation after the other in the order drawn."""
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.4)
    images = torch.rand(64, 3, 8, 8, generator=generator()) * 255
    strengths, order = jitter.draw(64, 8, 8, generator())
    assert len(order.unique(dim=0)) > 20
    alone = []
    for image, strength, kinds in zip(images.split(1), strengths, order, strict=True):
        for kind in kinds:
            if kind == HUE:
                image = adjust_hue(image, strength[kind].view(1))
            else:
                image = blend(image, kind.view(1), strength[kind].view(1))
        alone.append(image)
    torch.testing.assert_close(jitter(images.clone(), strengths, order), torch.cat(alone))


def test_none_switches_an_operation_off() -> None:
    images = torch.randint(0, 256, (4, 40, 40, 3), generator=generator(), dtype=torch.uint8)
    views = Augmentation(32, crop=None, flip=None)(images, generator())
    assert torch.equal(views, images[:, 4:36, 4:36].permute(0, 3, 1, 2).float())


def test_bounds_the_wrong_way_round_are_named() -> None:
    with pytest.raises(ValueError, match=r"augmentation.crop.scale=\[1.0, 0.2\]: the first must not exceed"):
        RandomResizedCrop(32, (1.0, 0.2), (0.75, 1.33))
    with pytest.raises(ValueError, match=r"augmentation.crop.ratio=\[2, 1\]: the first must not exceed"):
        RandomResizedCrop(32, (0.2, 1.0), (2, 1))
