"""Each operation against its namesake in torchvision, on real photographs and on noise, with the same parameters."""

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import functional as reference
from torchvision.transforms import v2

from src.augmentations import functional

COUNT = 16


@pytest.fixture(scope="module", params=[32, 96, 256])
def images(request: pytest.FixtureRequest) -> Tensor:
    """uint8 `(16, 3, S, S)`: crops of two photographs, noise, and the extremes."""
    size = request.param
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(size)
    crops = [photographs[i % 2][:, i * 8 : i * 8 + size, i * 16 : i * 16 + size] for i in range(COUNT - 4)]
    noise = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    return torch.cat([torch.stack(crops), noise, torch.zeros_like(noise[:1]), torch.full_like(noise[:1], 255)])


def assert_within_a_grey_level(ours: Tensor, images: Tensor, theirs: Callable[[Tensor, int], Tensor]) -> None:
    expected = torch.stack([theirs(image, i) for i, image in enumerate(images)]).float()
    assert (ours - expected).abs().max() <= 1.0


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour(images: Tensor, name: str) -> None:
    factors = torch.linspace(0, 2, COUNT)
    kind = torch.full((COUNT,), getattr(functional, name.upper()))
    ours = functional.blend(images.float(), kind, factors)
    theirs = getattr(reference, f"adjust_{name}")
    assert_within_a_grey_level(ours, images, lambda image, i: theirs(image, factors[i].item()))


def test_each_image_is_blended_in_its_own_way(images: Tensor) -> None:
    kind = torch.arange(COUNT) % 3
    factors = torch.linspace(0, 2, COUNT)
    theirs = [reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation]
    ours = functional.blend(images.float(), kind, factors)
    assert_within_a_grey_level(ours, images, lambda image, i: theirs[i % 3](image, factors[i].item()))


def test_hue(images: Tensor) -> None:
    shifts = torch.linspace(-0.5, 0.5, COUNT)
    ours = functional.adjust_hue(images.float(), shifts)
    assert_within_a_grey_level(ours, images, lambda image, i: reference.adjust_hue(image, shifts[i].item()))


def test_grey_and_flip(images: Tensor) -> None:
    mask = torch.arange(COUNT) % 3 == 0
    grey = functional.to_grayscale_(images.float(), mask)
    assert_within_a_grey_level(
        grey, images, lambda image, i: reference.rgb_to_grayscale(image, 3) if mask[i] else image
    )
    flipped = functional.horizontal_flip_(images.float(), mask)
    assert_within_a_grey_level(flipped, images, lambda image, i: reference.hflip(image) if mask[i] else image)


@pytest.mark.parametrize("share", [(0.3, 1.0), (1.0, 0.2), (0.5, 0.6)])
@pytest.mark.parametrize("out", [32, 227])
def test_resized_crop_with_antialiasing(images: Tensor, share: tuple[float, float], out: int) -> None:
    """Up and down: boxes of several shapes, and the whole image, to a smaller and a larger size."""
    side = images.shape[-1]
    height, width = max(1, round(side * share[0])), max(1, round(side * share[1]))
    tops = torch.linspace(0, side - height, COUNT).long()
    lefts = torch.linspace(side - width, 0, COUNT).long()
    boxes = torch.stack([tops, lefts, torch.full_like(tops, height), torch.full_like(tops, width)], 1)
    boxes[-3] = torch.tensor([0, 0, side, side])
    resized = [functional.resized_crop(images, boxes, out), functional.resized_crop(images.float(), boxes, out)]
    for ours in [*resized, functional.resample(images.float(), boxes, out)]:
        assert ours.shape == (COUNT, 3, out, out)
        assert_within_a_grey_level(
            ours.float(),
            images,
            lambda image, i: reference.resized_crop(image, *boxes[i].tolist(), [out, out], antialias=True),
        )


def test_crop(images: Tensor) -> None:
    side = images.shape[-1]
    corners = torch.stack([torch.linspace(0, side - 20, COUNT).long(), torch.linspace(side - 20, 0, COUNT).long()], 1)
    expected = [reference.crop(image, *corners[i].tolist(), 20, 20) for i, image in enumerate(images)]
    assert torch.equal(functional.crop(images, corners, 20), torch.stack(expected))


@pytest.mark.parametrize("size", [27, 32])
def test_center_crop_and_normalize(images: Tensor, size: int) -> None:
    cropped = functional.center_crop(images, size)
    assert torch.equal(cropped, reference.center_crop(images, [size, size]))
    mean, std = torch.tensor([125.0, 123.0, 114.0]), torch.tensor([51.0, 50.0, 52.0])
    expected = v2.functional.normalize(cropped.float(), mean.tolist(), std.tolist())
    torch.testing.assert_close(functional.normalize(cropped.float(), mean, std), expected)


def test_center_crop_larger_than_the_image_raises() -> None:
    with pytest.raises(ValueError, match="64 pixels is larger than the 32x32"):
        functional.center_crop(torch.zeros(1, 3, 32, 32), 64)
