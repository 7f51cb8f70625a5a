"""Inception-V1 as published in Caffe, the paper's network for fine-grained sets: BVLC GoogLeNet (Szegedy et al., 2015).

Unlike torchvision's GoogLeNet it normalises local responses instead of batches and takes images of 0 to 255 less their
mean. Layers have Caffe's names, with `/` written as `_`.
"""

import os
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from src.backbones.weights import read_weights
from src.hints import Text
from src.running.download import download

Pool = Literal["average", "average_max", "pyramid"]

# BVLC GoogLeNet, released for unrestricted use.
URL = "http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel"
CHECKSUM = "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204"

# Of each module: channels that come in; 1x1; 3x3 reduced and full; 5x5 reduced and full; projected behind the pooling.
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
# Only the ImageNet classifiers have these names: the pooled features go into a head of our own.
CLASSIFIERS = ("loss1/", "loss2/", "loss3/")


class LocalResponseNorm(nn.Module):
    """`torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1)`, several times faster on a CPU.

    The sum over a window of channels is a 1x1 convolution with a banded matrix, and x^-3/4 two square roots.
    """

    band: Tensor

    def __init__(self, channels: int, size: int = 5, alpha: float = 1e-4) -> None:
        super().__init__()
        distance = (torch.arange(channels).view(-1, 1) - torch.arange(channels)).abs()
        band = (distance <= size // 2).float() * (alpha / size)
        self.register_buffer("band", band.view(channels, channels, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same, each value over its neighbours' norm to the power 3/4."""
        if images.dtype == torch.float16:  # its squares end at 65,504
            with torch.autocast(images.device.type, enabled=False):
                return self.forward(images.float()).half()
        root = (functional.conv2d(images.square(), self.band.to(images.dtype)) + 1).rsqrt()
        return images * root * root.sqrt()


class Inception(nn.Module):
    """One module: four branches over the same input, their channels joined."""

    def __init__(self, inputs: int, one: int, three_in: int, three: int, five_in: int, five: int, pool: int) -> None:
        super().__init__()
        self.add_module("1x1", nn.Conv2d(inputs, one, 1))
        self.add_module("3x3_reduce", nn.Conv2d(inputs, three_in, 1))
        self.add_module("3x3", nn.Conv2d(three_in, three, 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(inputs, five_in, 1))
        self.add_module("5x5", nn.Conv2d(five_in, five, 5, padding=2))
        self.add_module("pool_proj", nn.Conv2d(inputs, pool, 1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        def conv(name: str, values: Tensor) -> Tensor:
            convolved: Tensor = self.get_submodule(name)(values)
            return convolved

        branches = [
            conv("1x1", images),
            conv("3x3", functional.relu(conv("3x3_reduce", images), inplace=True)),
            conv("5x5", functional.relu(conv("5x5_reduce", images), inplace=True)),
            conv("pool_proj", functional.max_pool2d(images, 3, stride=1, padding=1)),
        ]
        joined: Tensor = self.relu(torch.cat(branches, 1))
        return joined


class GoogLeNet(nn.Module):
    """Images `(B, 3, S, S)`, RGB 0 to 255 less their mean, to pooled features `(B, F)`; trained at S = 224.

    Args:
        pool: of the last map: see `average`; or a `pyramid`, the means of the maps of the modules 4a to 5b.

    Attributes:
        num_features: F: 1,024, of a pyramid 4,752.
    """

    def __init__(self, pool: Pool = "average") -> None:
        super().__init__()
        self.conv1_7x7_s2 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.conv2_3x3_reduce = nn.Conv2d(64, 64, 1)
        self.conv2_3x3 = nn.Conv2d(64, 192, 3, padding=1)
        self.norm1, self.norm2 = LocalResponseNorm(64), LocalResponseNorm(192)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.adds_maximum = pool == "average_max"
        self.kept = [*MODULES][2:] if pool == "pyramid" else [*MODULES][-1:]
        self.num_features = sum(sum(MODULES[name][place] for place in (1, 3, 5, 6)) for name in self.kept)
        for name, channels in MODULES.items():
            self.add_module(f"inception_{name}", Inception(*channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.2)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.conv1_7x7_s2(images), inplace=True)
        x = self.norm1(self.pool(x))
        x = functional.relu(self.conv2_3x3_reduce(x), inplace=True)
        x = functional.relu(self.conv2_3x3(x), inplace=True)
        x = self.pool(self.norm2(x))
        features = []
        for name in MODULES:
            if name in ("4a", "5a"):
                x = self.pool(x)
            x = self.get_submodule(f"inception_{name}")(x)
            if name in self.kept:
                features.append(self.average(x))
        return torch.cat(features, 1)

    @property
    def last_relu(self) -> nn.Module:
        """What takes the last map `(B, 1024, h, w)` as the convolutions leave it."""
        return self.get_submodule("inception_5b.relu")

    def average(self, values: Tensor) -> Tensor:
        """A map `(B, C, h, w)` to its mean `(B, C)`, or with `average_max` to mean and maximum added."""
        mean = values.mean((2, 3))
        return mean + values.amax((2, 3)) if self.adds_maximum else mean


def inception(weights: Text | None, pretrained: bool, cache_dir: Text, pool: Pool) -> GoogLeNet:
    """The network with published or given weights, or from scratch.

    Args:
        weights: a file in Caffe's layout; None takes the published one.
        pretrained: False starts from scratch.
        cache_dir: where the published weights are kept, once downloaded.
        pool: of the last map its `average`, as published, or `average_max`, that and its maximum added; or a `pyramid`,
            the averages of the maps of the modules 4a to 5b.

    Raises:
        OSError, ValueError: no such file, not to be downloaded, or it holds another network; the message names it.
    """
    network = GoogLeNet(pool)
    if pretrained:
        load_caffe_weights(network, Path(weights).expanduser() if weights else _published(Path(cache_dir).expanduser()))
    return network


def _published(cache: Path) -> Path:
    """The published weights as safetensors, downloaded and converted the first time."""
    path = cache / "weights" / "bvlc_googlenet.safetensors"
    if not path.exists():
        source = path.with_suffix(".caffemodel")
        try:
            download(URL, source, CHECKSUM)
        except OSError as error:
            raise OSError(
                f"{error}; or put the file at {source}, name another with backbone.weights=PATH, "
                "or start from scratch with backbone.pretrained=false"
            ) from error
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(read_weights(source), partial)
        os.replace(partial, path)
    return path


def load_caffe_weights(network: GoogLeNet, path: Path) -> None:
    """Fill every layer from `path`; Caffe's first convolution expects BGR, so its channels are turned round."""
    found = {
        name.replace("conv1/", "conv1_").replace("conv2/", "conv2_").replace("/", "."): tensor
        for name, tensor in read_weights(path).items()
        if not name.startswith(CLASSIFIERS)
    }
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"backbone.weights={path} is not BVLC GoogLeNet: missing {missing[:3]} ({len(missing)} in all), "
            f"unknown {unknown[:3]} ({len(unknown)}), of another shape {shapes[:3]} ({len(shapes)})"
        )
    found["conv1_7x7_s2.weight"] = found["conv1_7x7_s2.weight"].flip(1)
    network.load_state_dict(found)
