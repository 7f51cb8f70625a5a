"""Networks of other libraries with their ImageNet weights, cut off after the pooling."""

import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Literal, cast

import torchvision
from torch import Tensor, nn

from src.backbones.weights import load_state
from src.hints import Text

PATIENCE = 5  # seconds to reach the hub
REMEDY = "name a file with backbone.weights=PATH, or start from scratch with backbone.pretrained=false"


TorchvisionName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "googlenet"]


class Pooled(nn.Module):
    """A classifier without its last layer: images `(B, 3, H, W)` to pooled features `(B, num_features)`."""

    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features

    @property
    def last_relu(self) -> nn.Module | None:
        """What takes a ResNet's last map `(B, F, h, w)` as the convolutions leave it; None in other networks."""
        stage: Any = getattr(self.network, "layer4", None)
        return getattr(stage[-1], "relu", None) if stage is not None else None

    @staticmethod
    def average(last: Tensor) -> Tensor:
        """The last map `(B, F, h, w)` to its mean `(B, F)`."""
        return last.mean((2, 3))


def from_torchvision(name: TorchvisionName, weights: Text | None, pretrained: bool) -> Pooled:
    """A torchvision classifier whose last layer is called `fc`, such as `resnet18`, `resnet50` or `googlenet`.

    Args:
        name: the model's name in torchvision.
        weights: a state dict of the same model, `.pth` or `.safetensors`; None takes torchvision's own.
        pretrained: False starts from scratch.

    Raises:
        OSError, ValueError: the weights are out of reach, or another network's; the message says what to do.
    """
    # Images are brought to the range that its weights were learned in, whoever loads them.
    options: dict[str, Any] = {"transform_input": True} if name == "googlenet" else {}
    if pretrained and weights is None:
        try:
            network = torchvision.models.get_model(name, weights="DEFAULT", **options)
        except OSError as error:
            raise OSError(f"torchvision's weights of {name} could not be downloaded: {error}; {REMEDY}") from error
    else:
        bare = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **options, **bare)
        if pretrained and weights is not None:
            load_state(network, Path(weights).expanduser(), besides=("aux1.", "aux2."))
    num_features = network.fc.in_features
    network.fc = nn.Identity()
    return Pooled(network, num_features)


def from_timm(name: Text, weights: Text | None, pretrained: bool) -> Pooled:
    """Any network of timm (`pip install timm`), by its name there; arguments and errors as of `from_torchvision`.

    Raises:
        ImportError: timm is not installed.
    """
    if pretrained and weights is None:
        _give_up_soon()
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbone=timm needs the package timm: pip install '.[timm]'") from error
    if not timm.is_model(name):
        raise ValueError(f"backbone.name={name}: timm has no such model; timm.list_models() names them")
    overlay = None
    if pretrained and weights is not None:
        if not Path(weights).expanduser().is_file():
            raise FileNotFoundError(f"backbone.weights={weights}: there is no such file")
        overlay = {"file": str(Path(weights).expanduser())}  # timm drops the classifier by itself
    try:
        network = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise OSError(f"timm's weights of {name} could not be loaded: {error}; {REMEDY}") from error
    return Pooled(network, cast(int, getattr(network, "head_hidden_size", None) or network.num_features))


def _give_up_soon() -> None:
    """Without a way to the hub take what is cached; its client, not imported yet, would try for most of a minute."""
    hub = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if not urllib.request.getproxies():
        try:
            socket.create_connection((hub.hostname, hub.port or 443), timeout=PATIENCE).close()
        except OSError:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
