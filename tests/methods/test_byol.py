import pytest
import torch
from torch import Tensor

from src.methods.base import TrainingSet
from src.methods.byol import BYOL, byol_loss
from tests.methods.reference import assert_same, length, unit


def naive(q: Tensor, z: Tensor) -> Tensor:
    """Equation (2) of Grill et al., of each view, summed over both and averaged over the images."""
    total, images = q.new_zeros(()), len(q) // 2
    for i in range(images):
        for one, other in ((i, i + images), (i + images, i)):
            a, b = q[one] / length(q[one]), z[other] / length(z[other])
            total = total + (a - b).square().sum()
    return total / images


@pytest.mark.parametrize("images", [1, 2, 7])
def test_agrees_with_the_equation(images: int) -> None:
    q, z = 3 * unit(2 * images, 5), 0.2 * unit(2 * images, 5, seed=1)
    q.requires_grad_()
    assert_same(byol_loss(q, z), naive(q, z), q)
    assert not byol_loss(q.detach(), z.requires_grad_()).requires_grad, "nor does any gradient reach the teacher"
    assert byol_loss(z.roll(images, 0), z).item() == pytest.approx(0)


def test_the_predictor_stands_between_the_projection_and_the_loss() -> None:
    method = BYOL(6, 0.99)
    method.setup(TrainingSet(40, 4, pretrained=False, labels=None, num_features=8))
    shapes = {name: tuple(weight.shape) for name, weight in method.named_parameters()}
    assert shapes["predictor.0.weight"] == (6, 4)
    assert shapes["predictor.3.weight"] == (4, 6)
    z, target = torch.randn(8, 4), torch.randn(8, 4)
    found = method(z, torch.arange(4), torch.randn(8, 8), (torch.randn(8, 8), target))
    torch.testing.assert_close(found["loss"], byol_loss(method.predictor(z), target))
