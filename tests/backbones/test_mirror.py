"""Features of images and of their mirror images, by hand."""

import pytest
import torch

from src.backbones.mirror import features_of
from src.backbones.resnet import resnet18


@pytest.mark.parametrize("mirror", [False, True])
def test_they_are_the_mean_of_both_where_that_is_asked_for(mirror: bool) -> None:
    torch.manual_seed(0)
    backbone, images = resnet18(4).eval(), torch.randn(3, 3, 16, 16)
    turned = torch.stack([torch.stack([image[:, :, 15 - column] for column in range(16)], 2) for image in images])
    with torch.no_grad():
        one, other, features = backbone(images), backbone(turned), features_of(backbone, images, mirror)
        assert not torch.allclose(one, other, atol=1e-3)
        torch.testing.assert_close(features, (one + other) / 2 if mirror else one)
        assert torch.allclose(features, features_of(backbone, turned, mirror), atol=1e-5) == mirror


def test_their_mean_is_not_rounded_as_they_are() -> None:
    """A network that computes in bfloat16 has eight bits for each of them."""
    torch.manual_seed(0)
    backbone, images = torch.nn.Flatten(), torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
    features = features_of(backbone, images, mirror=True)
    assert features.dtype == torch.float32
    assert torch.equal(features, (images.double() + images.flip(3).double()).flatten(1).float() / 2)
