import pytest
import torch
from torch import Tensor

from src.methods.triplet import choose_negatives, triplet_loss
from src.vectors.distances import distances
from tests.methods.reference import assert_same, unit


def naive(z: Tensor, margin: float, negative: list[int]) -> Tensor:
    total, rows = z.new_zeros(()), len(z)
    for a in range(rows):
        p, n = (a + rows // 2) % rows, negative[a]
        total = total + torch.clamp(margin + (z[a] - z[p]).norm() - (z[a] - z[n]).norm(), min=0)
    return total / rows


def hardest(z: Tensor) -> list[int]:
    rows, images = len(z), len(z) // 2
    return [
        min((j for j in range(rows) if j % images != i % images), key=lambda j: (z[i] - z[j]).norm().item())
        for i in range(rows)
    ]


def test_hard_agrees_with_a_loop() -> None:
    z = unit(12, 5).requires_grad_()
    assert_same(triplet_loss(z, 0.5, "hard"), naive(z, 0.5, hardest(z.detach())), z)


def test_random_agrees_with_a_loop() -> None:
    z = unit(12, 5).requires_grad_()
    torch.manual_seed(3)
    drawn = choose_negatives(distances(z), "random").tolist()
    torch.manual_seed(3)
    assert_same(triplet_loss(z, 0.5, "random"), naive(z, 0.5, drawn), z)


def test_random_negatives_are_every_other_image_alike() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([choose_negatives(torch.zeros(8, 8), "random") for _ in range(3000)])
    for row in range(8):
        counts = drawn[:, row].bincount(minlength=8)
        assert counts[row] == counts[(row + 4) % 8] == 0
        others = counts[[i for i in range(8) if i % 4 != row % 4]]
        assert (others - 500).abs().max() < 100


def test_no_hard_negative_left_means_no_gradient() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    loss = triplet_loss(z, 0.5, "hard")
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_identical_embeddings_have_a_finite_gradient() -> None:
    z = torch.ones(6, 4).div(2).requires_grad_()
    loss = triplet_loss(z, 0.5, "hard")
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("rows", [2, 5])
def test_too_few_images(rows: int) -> None:
    with pytest.raises(ValueError, match=rf"\({rows}, 4\)"):
        triplet_loss(unit(rows, 4), 0.5, "random")
