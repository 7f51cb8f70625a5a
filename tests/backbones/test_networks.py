from collections.abc import Callable

import pytest
import torch
import torchvision

from src.backbones.head import Head
from src.backbones.resnet import SmallImageResNet, resnet18, resnet50


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
