"""ResNets in their CIFAR form, for images of 32 to 96 pixels: a 3x3 stem and no max-pooling (He et al., CVPR 2016)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from src.backbones.weights import load_state
from src.backbones.winograd import WinogradConv2d
from src.hints import Count, Stride, Text, Width

InitialWeights = Literal["kaiming", "torch"]


class SmallImageResNet(nn.Module):
    """torchvision's residual blocks in four stages, each but the first halving the image, and a global average pool.

    Args:
        block: torchvision's block.
        depths: blocks of each stage.
        width: channels of the first stage; each other has twice those of the one before.
        initial_weights: of the convolutions: `kaiming`, normal by the fan-out (He et al., ICCV 2015), or `torch`, the
            uniform ones that its layers come with.
        stride: of the stem: 2 halves the image at once, for a quarter of the time.
        pool: side of the top-left square of the last map that is averaged; None takes the whole map.
        winograd: see `WinogradConv2d`.
        weights: a state dict of the same network, `.pth` or `.safetensors`; None starts from the initial ones.

    Attributes:
        num_features: length F of the pooled features.

    Raises:
        FileNotFoundError, ValueError: the weights are missing, or another network's; the message names them.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int,
        initial_weights: InitialWeights,
        stride: int,
        pool: int | None,
        winograd: bool,
        weights: str | None,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        stages, channels = [], width
        for number, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                step, planes = 2 if number > 0 and position == 0 else 1, width * 2**number
                shortcut = None
                if step != 1 or channels != planes * block.expansion:
                    shortcut = nn.Sequential(
                        conv1x1(channels, planes * block.expansion, step), nn.BatchNorm2d(planes * block.expansion)
                    )
                blocks.append(block(channels, planes, step, shortcut))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pooled_side, self.num_features = pool, channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and initial_weights == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if winograd:
            for module in self.stages.modules():
                for name, layer in module.named_children():
                    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
                        setattr(module, name, WinogradConv2d(layer))
        if weights:
            load_state(self, Path(weights).expanduser())

    @property
    def last_relu(self) -> nn.Module:
        """What takes the last map `(B, F, h, w)` as the convolutions leave it."""
        return self.stages[-1][-1].relu  # type: ignore[index]

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` to pooled features `(B, F)`."""
        return self.average(self.stages(self.stem(images)))

    def average(self, last: Tensor) -> Tensor:
        """The last map `(B, F, h, w)` to its mean `(B, F)`, over the whole of it or its top-left corner."""
        return self.pool(last[:, :, : self.pooled_side, : self.pooled_side]).flatten(1)


def resnet18(
    width: Width = 64,
    initial_weights: InitialWeights = "kaiming",
    stride: Stride = 1,
    pool: Count | None = None,
    winograd: bool = True,
    weights: Text | None = None,
) -> SmallImageResNet:
    """ResNet-18, F = 8 x width features."""
    return SmallImageResNet(BasicBlock, (2, 2, 2, 2), width, initial_weights, stride, pool, winograd, weights)


def resnet50(
    width: Width = 64,
    initial_weights: InitialWeights = "kaiming",
    stride: Stride = 1,
    pool: Count | None = None,
    winograd: bool = True,
    weights: Text | None = None,
) -> SmallImageResNet:
    """ResNet-50, F = 32 x width features."""
    return SmallImageResNet(Bottleneck, (3, 4, 6, 3), width, initial_weights, stride, pool, winograd, weights)
