from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch.nn.functional import avg_pool2d

from src.backbones.head import Head
from src.backbones.imagenet import Pooled, from_torchvision
from src.backbones.inception import GoogLeNet
from src.backbones.resnet import SmallImageResNet, resnet18, resnet50


def published_resnet() -> Pooled:
    return from_torchvision("resnet18", None, pretrained=False)


def maximum_too() -> GoogLeNet:
    return GoogLeNet("average_max")


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize(("make", "features"), [(resnet18, 128), (resnet50, 512)])
def test_shapes(make: Callable[..., SmallImageResNet], features: int, size: int) -> None:
    network = make(width=16).eval()
    assert network.num_features == features
    with torch.no_grad():
        assert network(torch.randn(2, 3, size, size)).shape == (2, features)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_same_parameters_as_torchvision_but_for_stem_and_classifier(name: str) -> None:
    """Stage by stage the shapes are torchvision's, so that nothing but the stem is the CIFAR form's own."""
    ours = {"resnet18": resnet18, "resnet50": resnet50}[name]()
    theirs = torchvision.models.get_model(name)
    for stage, expected in zip(ours.stages, [theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4], strict=True):
        state = expected.state_dict()
        stage.load_state_dict(state)
        images = torch.randn(1, next(iter(state.values())).shape[1], 8, 8)
        torch.testing.assert_close(stage.eval()(images), expected.eval()(images))
    assert ours.stem[0].weight.shape == (64, 3, 3, 3)


def test_head_is_unit_norm_in_float32_under_autocast() -> None:
    head = Head(16, 8)
    features = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = head(features)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, head(features))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


def test_the_head_before_its_norm() -> None:
    head, features = Head(16, 8), torch.randn(4, 16)
    projected = head.project(features)
    torch.testing.assert_close(projected, features @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(head(features), projected / projected.norm(dim=1, keepdim=True))


def test_the_corner_that_is_pooled() -> None:
    """Of 96 pixels the last map has 12 x 12; the published program averages the top-left 7 x 7 (its pool_len)."""
    images = torch.randn(2, 3, 96, 96)
    torch.manual_seed(0)
    corner = resnet18(8, pool=7).eval()
    with torch.no_grad():
        last = corner.stages(corner.stem(images))
        assert last.shape[2:] == (12, 12)
        torch.testing.assert_close(corner(images), avg_pool2d(last, 7).flatten(1))
        torch.manual_seed(0)
        torch.testing.assert_close(resnet18(8).eval()(images), last.mean((2, 3)))


def test_initial_weights() -> None:
    """Kaiming's are normal with variance 2 / fan out; torch's uniform with bound 1 / sqrt(fan in)."""
    torch.manual_seed(0)
    kinds: list[Any] = [("kaiming", (2 / (512 * 9)) ** 0.5), ("torch", (1 / (512 * 9) / 3) ** 0.5)]
    for kind, spread in kinds:
        weight = resnet18(initial_weights=kind).stages[-1][-1].conv2.weight  # type: ignore[index]
        assert weight.std().item() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("make", [lambda: resnet18(8), lambda: resnet50(8), GoogLeNet, maximum_too, published_resnet])
def test_the_last_relu_is_the_last(make: Callable[[], Any]) -> None:
    """What it is given, averaged after a ReLU, are the pooled features."""
    network, seen = make().eval(), []
    network.last_relu.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        pooled = network(torch.randn(1, 3, 64, 64))
    assert seen[-1].min() < 0
    torch.testing.assert_close(network.average(seen[-1].relu()), pooled)
