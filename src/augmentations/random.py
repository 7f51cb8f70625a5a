"""Random operations with torchvision's distributions and one independent draw for every image of a batch.

Each operation is a pair: `draw` returns the parameters of `count` images, `__call__` applies them. Parameters are
drawn on the host from a CPU generator, so one seed gives the same crops and colours on every device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from src.augmentations import functional
from src.hints import Fractions, NonNegative, Pixels, Positives, Probability

IN_CACHE = 2**20  # numbers of a batch that a CPU augments at once


class RandomOperation(Protocol):
    """What `Augmentation` asks of an operation."""

    @property
    def size(self) -> int | None:
        """Pixels a side of what it makes of images, uint8 or float; None: takes float images and keeps their size."""

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """Parameters for `count` images of `height` x `width` pixels; each has the image as its first dimension."""

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        """Apply the parameters to `(N, 3, H, W)` images in grey levels, which may change with it."""


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: Generator) -> Tensor:
    low, high = bounds
    return torch.rand(shape, generator=generator) * (high - low) + low


@dataclass
class RandomResizedCrop:
    """A box of random area (`scale`, share of the image) and aspect (`ratio`, width by height), resized to `size`."""

    size: Pixels
    scale: Fractions
    ratio: Positives

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"augmentation.crop.{name}=[{low}, {high}]: the first must not exceed the second")

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """Boxes `(count, 4)`: of ten tries the first that fits, else the largest central box of a legal ratio."""
        shape = (count, 10)
        area = height * width * _uniform((self.scale[0], self.scale[1]), shape, generator)
        ratio = _uniform((math.log(self.ratio[0]), math.log(self.ratio[1])), shape, generator).exp()
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first = fits.int().argmax(1, keepdim=True)
        box_width, box_height = widths.gather(1, first).squeeze(1), heights.gather(1, first).squeeze(1)
        top = (
            (torch.rand(count, generator=generator) * (height - box_height + 1)).floor().clamp(max=height - box_height)
        )
        left = (torch.rand(count, generator=generator) * (width - box_width + 1)).floor().clamp(max=width - box_width)
        boxes = torch.stack([top, left, box_height, box_width], 1).long()

        central_height = min(height, round(width / self.ratio[0]))
        central_width = min(width, round(height * self.ratio[1]))
        corner = [(height - central_height) // 2, (width - central_width) // 2]
        return (torch.where(fits.any(1, keepdim=True), boxes, torch.tensor([*corner, central_height, central_width])),)

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        return functional.resized_crop(images, parameters[0], self.size)


@dataclass
class RandomCrop:
    """A square of `size` pixels from anywhere in the image."""

    size: Pixels

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """Corners `(count, 2)`, every place equally likely."""
        if self.size > min(height, width):
            raise ValueError(f"augmentation.crop.size={self.size} is larger than the {height}x{width} images")
        top = torch.randint(height - self.size + 1, (count,), generator=generator)
        return (torch.stack([top, torch.randint(width - self.size + 1, (count,), generator=generator)], 1),)

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        return functional.crop(images, parameters[0], self.size)


@dataclass
class ColorJitter:
    """Brightness, contrast, saturation and hue in an order drawn for every image.

    The first three are factors from `[max(0, 1 - x), 1 + x]`, hue a shift from `[-x, x]` of a circle, `x` <= 0.5.
    """

    size: ClassVar[None] = None
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Interval(ge=0, le=0.5)]

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """Strengths `(count, 4)` and the order `(count, 4)` in which the four operations apply."""
        bounds = [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        strengths = [_uniform(bound, (count,), generator) for bound in [*bounds, (-self.hue, self.hue)]]
        return torch.stack(strengths, 1), torch.rand(count, 4, generator=generator).argsort(1)

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        strengths, order = parameters
        blends = order[order != functional.HUE].view(-1, 3)  # the other three in their order
        for step in range(4):
            images = functional.adjust_hue_(images, order[:, step] == functional.HUE, strengths[:, functional.HUE])
            if step < 3:
                kind = blends[:, step]
                images = functional.blend(images, kind, strengths.gather(1, kind.unsqueeze(1)).squeeze(1))
        return images


@dataclass
class RandomGrayscale:
    """Grey with probability `p`."""

    size: ClassVar[None] = None
    p: Probability

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """A mask `(count,)` of the images that turn grey."""
        return (torch.rand(count, generator=generator) < self.p,)

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        return functional.to_grayscale_(images, parameters[0])


@dataclass
class RandomHorizontalFlip:
    """Mirrored, left to right, with probability `p`."""

    size: ClassVar[None] = None
    p: Probability

    def draw(self, count: int, height: int, width: int, generator: Generator) -> tuple[Tensor, ...]:
        """A mask `(count,)` of the images that are mirrored."""
        return (torch.rand(count, generator=generator) < self.p,)

    def __call__(self, images: Tensor, *parameters: Tensor) -> Tensor:
        return functional.horizontal_flip_(images, parameters[0])


class Augmentation:
    """The named operations in the order given, then a centre crop to `size` where they left another size.

    An operation that is None is skipped, so `crop: null` switches the crop off.
    """

    def __init__(self, size: Pixels, **operations: RandomOperation | None) -> None:
        self.size = size
        self.operations = {name: operation for name, operation in operations.items() if operation is not None}

    def __call__(
        self, images: Tensor, generator: Generator, finish: Callable[[Tensor], Tensor] = lambda images: images
    ) -> Tensor:
        """Draw and apply: uint8 `(N, H, W, 3)` to float `(N, 3, size, size)` in grey levels, then `finish`.

        All parameters are drawn first. On a CPU they are then applied to as many images at once as its cache holds.
        """
        count, height, width, _ = images.shape
        drawn = []
        for operation in self.operations.values():
            drawn.append(operation.draw(count, height, width, generator))
            height, width = (operation.size, operation.size) if operation.size else (height, width)
        together = count if images.device.type != "cpu" else max(1, IN_CACHE // (3 * self.size**2))
        views = []
        for part in (slice(start, start + together) for start in range(0, count, together)):
            some = images[part].permute(0, 3, 1, 2)
            for operation, parameters in zip(self.operations.values(), drawn, strict=True):
                some = operation(some if operation.size else some.float(), *(column[part] for column in parameters))
            views.append(finish(functional.center_crop(some, self.size).float()))
        return torch.cat(views) if len(views) > 1 else views[0]
