"""Image operations on whole batches, each image with its own parameters.

Images are `(N, 3, H, W)` in grey levels, 0 to 255: float, or uint8 as well where an operation only moves pixels. Given
the same parameters, every operation agrees with its namesake in `torchvision.transforms.functional` on uint8 tensors to
within one grey level: torchvision goes back to whole levels after each operation, most of these do not.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as torchvision rounds them
# The adjustments of colour; the first three blend an image with something.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _rows(mask: Tensor, images: Tensor) -> Tensor:
    # Found on the host, where the parameters are drawn, so that nothing waits for the device.
    return mask.nonzero().squeeze(1).to(images.device, non_blocking=True)


def _grey(images: Tensor) -> Tensor:
    # Whole levels, rounded down, as torchvision's grey of a uint8 image.
    red, green, blue = images.unbind(1)
    return (
        (GREY_WEIGHTS[0] * red).add_(green, alpha=GREY_WEIGHTS[1]).add_(blue, alpha=GREY_WEIGHTS[2]).floor_()[:, None]
    )


def blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Adjust brightness, contrast or saturation: factor x image + (1 - factor) x what the kind blends with.

    Args:
        images: float `(N, 3, H, W)`.
        kind: `(N,)` BRIGHTNESS blends with black, CONTRAST with the image's mean grey, SATURATION with its grey.
        factor: `(N,)`, at least 0; 1 changes nothing.
    """
    rest = 1 - factor
    grey = _grey(images)
    mean = grey.mean((1, 2, 3), keepdim=True) * _per_image(rest * (kind == CONTRAST), images)
    other = torch.addcmul(mean, grey, _per_image(rest * (kind == SATURATION), images))
    return torch.addcmul(other, images, _per_image(factor, images)).clamp_(0, 255)


def adjust_hue_(images: Tensor, mask: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of the images chosen by `mask` `(N,)` bool, in place; see `adjust_hue`."""
    here = _rows(mask, images)
    return images.index_copy_(0, here, adjust_hue(images.index_select(0, here), shift[mask]))


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` `(N,)` of a full circle, -0.5 to 0.5, in HSV space."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.mul(6).clamp_(min=1e-6).reciprocal_()
    # The hue as a share of the circle, measured from red, in the sector of the largest channel.
    hue = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(1 / 3), (red - green).mul_(scale).add_(2 / 3)),
    )
    hue = (hue + _per_image(shift, images).squeeze(1)).unsqueeze(1)
    # Each channel is `value` less the share of chroma that its distance from the hue takes away.
    distance = hue + (0.5 - torch.arange(3, device=images.device).view(3, 1, 1) / 3)
    share = distance.sub_(distance.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value.unsqueeze(1), chroma.unsqueeze(1), share, value=-1)


def to_grayscale_(images: Tensor, mask: Tensor) -> Tensor:
    """Replace the images chosen by `mask` `(N,)` bool by their grey, in three equal channels, in place."""
    here = _rows(mask, images)
    return images.index_copy_(0, here, _grey(images.index_select(0, here)).expand(-1, 3, -1, -1))


def horizontal_flip_(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images chosen by `mask` `(N,)` bool, left to right, in place."""
    here = _rows(mask, images)
    return images.index_copy_(0, here, images.index_select(0, here).flip(-1))


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box from each image and resize it to `(N, 3, size, size)`, bilinear with antialiasing.

    Args:
        images: uint8 or float `(N, 3, H, W)`.
        boxes: `(N, 4)` whole pixels: top, left, height, width.
        size: pixels a side.

    Returns:
        Float, or uint8 of such images.
    """
    if images.device.type != "cpu":
        return resample(images.float(), boxes, size)
    if int(boxes[:, 2:].max()) <= size:
        return enlarge(images.to(torch.float32, memory_format=torch.contiguous_format), boxes, size)
    # Nothing is faster than torch's own kernel for an image of bytes.
    return torch.cat(
        [
            interpolate(
                image[None, :, top : top + height, left : left + width], (size, size), mode="bilinear", antialias=True
            )
            for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True)
        ]
    )


def enlarge(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`resized_crop` of float images where no box is larger than `size`, so that antialiasing changes nothing."""

    def coordinates(start: Tensor, length: Tensor, side: int) -> Tensor:
        # Of the pixels' centres, from -1 to 1 over the image; where they leave the box its border goes on.
        start, length = start.float().unsqueeze(1), length.float().unsqueeze(1)
        inside = ((torch.arange(size) + 0.5) * (length / size)).clamp(min=0.5).minimum(length - 0.5)
        return (start + inside) * (2 / side) - 1

    top, left, height, width = boxes.unbind(1)
    rows, columns = coordinates(top, height, images.shape[2]), coordinates(left, width, images.shape[3])
    grid = torch.stack(torch.broadcast_tensors(columns.unsqueeze(1), rows.unsqueeze(2)), 3)
    return grid_sample(images, grid, padding_mode="border", align_corners=False).round_()


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


def resample(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`resized_crop` of float images for an accelerator: two batched matrix products, the columns', then the rows'."""
    top, left, height, width = boxes.to(images.device, non_blocking=True).unbind(1)
    rows = _resampling_matrix(top, height, images.shape[2], size).to(images.dtype)
    columns = _resampling_matrix(left, width, images.shape[3], size).to(images.dtype)
    return rows.unsqueeze(1) @ (images @ columns.transpose(1, 2).unsqueeze(1))


def crop(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut a `size` x `size` square from each image; `corners` `(N, 2)` are the top and the left pixel."""
    steps = torch.arange(size, device=images.device)
    top, left = corners.to(images.device, non_blocking=True).unbind(1)
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


def clean(images: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Stored images `(N, H, W, 3)` as evaluation sees them: their middle `(N, 3, size, size)`, normalised."""
    middle = center_crop(images.permute(0, 3, 1, 2).float(), size)
    return normalize(middle, mean, std).contiguous(memory_format=torch.channels_last)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract `mean` `(3,)` and divide by `std` `(3,)`, both in grey levels."""
    mean, std = (channel.to(images.device, non_blocking=True).view(3, 1, 1) for channel in (mean, std))
    return (images - mean) / std
