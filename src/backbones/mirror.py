"""What a network makes of images and of their mirror images, averaged: few things have a left and a right."""

from torch import Tensor, nn


def features_of(backbone: nn.Module, images: Tensor, mirror: bool) -> Tensor:
    """Images `(B, 3, H, W)` to pooled features `(B, F)`; with `mirror` to their mean with the mirror images'.

    One after the other: twice the time, in the memory of one.
    """
    features: Tensor = backbone(images)
    return (features.float() + backbone(images.flip(3)).float()) / 2 if mirror else features
