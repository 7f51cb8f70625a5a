import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor

from src.methods.simclr import nt_xent_loss
from tests.methods.reference import assert_same, unit


def naive(z: Tensor, tau: float) -> Tensor:
    """Equation (1) of Chen et al., over both views."""
    total, rows = z.new_zeros(()), len(z)
    for i in range(rows):
        p = (i + rows // 2) % rows
        denominator = torch.stack([(z[i] @ z[k] / tau).exp() for k in range(rows) if k != i]).sum()
        total = total - ((z[i] @ z[p] / tau).exp() / denominator).log()
    return total / rows


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_agrees_with_the_equation_and_with_pytorch_metric_learning(tau: float) -> None:
    z = unit(12, 5).requires_grad_()
    assert_same(nt_xent_loss(z, tau), naive(z, tau), z)
    theirs = NTXentLoss(tau)(z, torch.arange(6).repeat(2))  # its gradient runs through a normalisation of its own
    assert nt_xent_loss(z, tau).item() == pytest.approx(theirs.item())


def test_two_images_are_enough() -> None:
    z = unit(4, 3).requires_grad_()
    assert_same(nt_xent_loss(z, 0.5), naive(z, 0.5), z)


@pytest.mark.parametrize("rows", [2, 5])
def test_too_few_images(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"\({rows}, 4\)"):
        nt_xent_loss(unit(rows, 4), 0.5)
