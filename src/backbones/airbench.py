"""A small network for small images that learns in minutes: whitened patches, then plain convolutions (Jordan, 2024).

After airbench94 of "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498, section 3), without its linear
layer: the maximum over the last map is the pooled features, or all of it, or of the maps before it too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional

from src.backbones.weights import load_state
from src.backbones.winograd import WinogradConv2d
from src.hints import Text, Width
from src.vectors.principal import principal

Pool = Literal["maximum", "grid", "pyramid"]
Widths = Annotated[Sequence[Width], Len(3, 3), "three numbers of channels"]
PATCH = 2  # pixels a side
GRID = 3  # parts a side: of 32 pixels, the last map itself
EPSILON = 5e-4  # added to the variances, so that what hardly varies is not blown up


class Airbench(nn.Module):
    """Whitened 2x2 patches; three blocks, each of which halves the map; the maximum over the last map.

    A block is two 3x3 convolutions without bias, each with batch norm and GELU; max-pooling follows the first. A
    convolution begins with the identity, as far as its outputs have inputs, and torch's weights beyond.

    Args:
        widths: channels of each block.
        pool: of the last map, the `maximum`; or a `grid`, the mean of each of its 3x3 parts, which keeps what is where;
            or a `pyramid`, such a grid of the last map of each block.
        weights: a state dict of the same network, `.pth` or `.safetensors`; None starts from the initial ones.

    Attributes:
        filters: of the first layer, `(24, 3, 2, 2)`, which do not learn: they wait for `whiten`.
        num_features: the last of the widths; nine times that of a grid, and nine times their sum of a pyramid.
        parts: of a pyramid, how many features each block has: a whitening lets all blocks count alike.

    Raises:
        FileNotFoundError, ValueError: the weights are missing, or another network's; the message names them.
    """

    filters: Tensor

    def __init__(self, widths: Widths = (64, 256, 256), pool: Pool = "maximum", weights: Text | None = None) -> None:
        super().__init__()
        first = nn.Conv2d(3, 2 * 3 * PATCH**2, PATCH)
        self.register_buffer("filters", first.weight.detach())
        self.bias = first.bias
        layers: list[nn.Module] = []
        ends: list[int] = []  # of each block, where its last layer is
        channels = len(self.filters)
        for width in widths:
            layers += [*_layer(channels, width, nn.MaxPool2d(2)), *_layer(width, width)]
            ends.append(len(layers) - 1)
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.kept = {"maximum": [], "grid": ends[-1:], "pyramid": ends}[pool]
        self.num_features = {"maximum": channels, "grid": GRID**2 * channels, "pyramid": GRID**2 * sum(widths)}[pool]
        self.parts = [GRID**2 * width for width in widths] if pool == "pyramid" else []
        if weights:
            load_state(self, Path(weights).expanduser())

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to pooled features `(B, F)`."""
        x = functional.gelu(functional.conv2d(images, self.filters, self.bias))
        features = []
        for place, layer in enumerate(self.blocks):
            x = layer(x)
            if place in self.kept:
                features.append(functional.adaptive_avg_pool2d(x, GRID).flatten(1))
        # By its place: compiled, amax looks for a maximum that was rounded otherwise when it goes back, and finds none.
        return torch.cat(features, 1) if features else x.flatten(2).max(2).values

    def whiten(self, images: Tensor) -> None:
        """Make the first layer whiten the patches of `images` `(N, 3, H, W)`: its outputs then have variance 1, nearly.

        Filters are the eigenvectors of the patches' covariance over the square root of their eigenvalues, and the
        negatives of those, since GELU lets only one side through (section 3.1).
        """
        total = torch.zeros(len(self.filters) // 2, len(self.filters) // 2, dtype=torch.float64)
        count = 0
        for some in images.split(50):
            patches = functional.unfold(some, PATCH).transpose(0, 1).flatten(1).double()
            total += patches @ patches.T
            count += patches.shape[1]
        variances, directions = principal(total / count)
        whitening = (directions / (variances + EPSILON).sqrt().unsqueeze(1)).view(-1, 3, PATCH, PATCH)
        self.filters.copy_(torch.cat([whitening, -whitening]))


def _layer(inputs: int, outputs: int, *pool: nn.Module) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.detach()[:inputs])
    return [WinogradConv2d(convolution), *pool, nn.BatchNorm2d(outputs), nn.GELU()]
