"""Image operations on whole batches, each image with its own parameters.

Images are float tensors `(N, 3, H, W)` in grey levels, 0 to 255. Given the same parameters, every operation agrees
with its namesake in `torchvision.transforms.functional` on uint8 tensors to within one grey level: torchvision goes
back to whole levels after each operation, these do not.
"""

import torch
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as torchvision rounds them


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1)


def _grey(images: Tensor) -> Tensor:
    # Whole levels, rounded down, as torchvision's grey of a uint8 image.
    red, green, blue = images.unbind(1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue).floor_().unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, images, _per_image(factor, images)).clamp_(0, 255)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale towards black: `factor` `(N,)`, 0 black, 1 unchanged."""
    return (images * _per_image(factor, images)).clamp_(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: `factor` `(N,)`, 0 flat grey, 1 unchanged."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: `factor` `(N,)`, 0 grey, 1 unchanged."""
    return _blend(images, _grey(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` `(N,)` of a full circle, -0.5 to 0.5, in HSV space."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    scale = torch.where(chroma > 0, chroma, 1).reciprocal_()
    # The hue in sixths of a circle, measured from red, in the sector of the largest channel.
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue = hue + 6 * shift.to(images.device, images.dtype).view(-1, 1, 1)
    # Each channel is `value` less the share of chroma that its distance from the hue takes away.
    channels = []
    for offset in (5, 3, 1):
        position = torch.remainder(hue + offset, 6)
        channels.append(value - chroma * torch.minimum(position, 4 - position).clamp_(0, 1))
    return torch.stack(channels, 1)


def to_grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the images chosen by `mask` `(N,)` bool by their grey, in three equal channels."""
    return torch.where(mask.to(images.device).view(-1, 1, 1, 1), _grey(images), images)


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images chosen by `mask` `(N,)` bool, left to right."""
    return torch.where(mask.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def _resampling_matrix(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """`(N, size_out, size_in)` weights that resample pixels `start … start + length` to `size_out` ones, bilinear.

    The triangle filter widens with the scale when it shrinks (antialiasing, as in Pillow and torchvision) and never
    reaches outside the crop.
    """
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    scale = length / size_out
    centre = start + (torch.arange(size_out, device=start.device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(size_in, device=start.device).view(1, 1, -1) + 0.5
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box from each image and resize it to `(N, 3, size, size)`, bilinear with antialiasing.

    `boxes` `(N, 4)` are whole pixels: top, left, height, width. Resampling is separable, so it is two batched matrix
    products: over the columns, then over the rows.
    """
    top, left, height, width = boxes.to(images.device).unbind(1)
    rows = _resampling_matrix(top, height, images.shape[2], size).to(images.dtype)
    columns = _resampling_matrix(left, width, images.shape[3], size).to(images.dtype)
    return rows.unsqueeze(1) @ (images @ columns.transpose(1, 2).unsqueeze(1))


def crop(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut a `size` x `size` square from each image; `corners` `(N, 2)` are the top and the left pixel."""
    steps = torch.arange(size, device=images.device)
    top, left = corners.to(images.device).unbind(1)
    number = torch.arange(len(images), device=images.device)
    rows, columns = top.view(-1, 1, 1) + steps.view(1, -1, 1), left.view(-1, 1, 1) + steps
    return images.permute(0, 2, 3, 1)[number.view(-1, 1, 1), rows, columns].permute(0, 3, 1, 2)


def center_crop(images: Tensor, size: int) -> Tensor:
    """The middle `(N, 3, size, size)`, rounded as torchvision does."""
    height, width = images.shape[-2:]
    if size > min(height, width):
        raise ValueError(f"a centre crop of {size} pixels is larger than the {height}x{width} images")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract `mean` `(3,)` and divide by `std` `(3,)`, both in grey levels."""
    return (images - mean.to(images.device).view(3, 1, 1)) / std.to(images.device).view(3, 1, 1)
