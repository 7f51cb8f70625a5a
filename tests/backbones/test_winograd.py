import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from src.backbones.resnet import resnet18
from src.backbones.winograd import WinogradConv2d, winograd_conv3x3


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(images, weight, padding=1)


def both(convolution: object, images: Tensor, weight: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of a weighted sum of them."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    outputs = convolution(images, weight)  # type: ignore[operator]
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    return [outputs, *torch.autograd.grad((outputs * weights).sum(), (images, weight))]


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (1, 3), (5, 2), (7, 8)])
def test_is_the_convolution_in_float64(size: tuple[int, int]) -> None:
    images = torch.randn(3, 5, *size, dtype=torch.float64)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    for ours, theirs in zip(both(winograd_conv3x3, images, weight), both(convolve, images, weight), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rounds_in_bfloat16_by_half_a_percent() -> None:
    images, weight = torch.randn(8, 256, 4, 4).relu().bfloat16(), (torch.randn(256, 256, 3, 3) / 48).bfloat16()
    exact = both(convolve, images.double(), weight.double())
    for ours, right in zip(both(winograd_conv3x3, images, weight), exact, strict=True):
        assert (ours - right).norm() / right.norm() < 0.01


@pytest.mark.parametrize(
    ("channels", "size", "dtype", "fewer"),
    [
        (256, 8, torch.bfloat16, True),
        (256, 10, torch.bfloat16, False),
        (128, 4, torch.bfloat16, False),
        (256, 8, torch.float32, False),
    ],
)
def test_small_maps_of_many_channels_in_bfloat16_only(
    channels: int, size: int, dtype: torch.dtype, fewer: bool
) -> None:
    plain = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer = WinogradConv2d(plain)
    layer.vectors = True  # whatever this machine has
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        expected = (winograd_conv3x3 if fewer else convolve)(images.to(dtype), plain.weight.to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            torch.testing.assert_close(layer(images), expected, rtol=0, atol=0)
        layer.vectors = False
        assert torch.equal(layer(images), plain(images))


def test_the_network_is_the_same_but_for_the_rounding() -> None:
    networks, draws = [], []
    for winograd in (True, False):
        torch.manual_seed(0)
        networks.append(resnet18(32, winograd=winograd))
        draws.append(torch.rand(1))
    ours, plain = networks
    assert sum(isinstance(layer, WinogradConv2d) for layer in ours.modules()) == 13
    assert draws[0] == draws[1], "the initial weights of what comes after are the same"
    assert list(ours.state_dict()) == list(plain.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    images = torch.randn(16, 3, 32, 32)
    torch.testing.assert_close(ours(images), plain(images))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(images), plain(images), rtol=0.1, atol=0.1)
