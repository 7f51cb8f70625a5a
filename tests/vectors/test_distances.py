import pytest
import torch

from src.vectors.distances import distances


def test_agrees_with_a_loop() -> None:
    rows = 5 + torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3] = rows[7]
    expected = torch.stack([torch.stack([(a - b).norm() for b in rows]) for a in rows])
    torch.testing.assert_close(distances(rows), expected, rtol=1e-10, atol=1e-10)
    assert not distances(rows).diagonal().any()
    assert torch.autograd.gradcheck(distances, rows[:7].clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_have_a_finite_gradient(dtype: torch.dtype) -> None:
    rows = torch.ones(3, 2, dtype=dtype).requires_grad_()
    distances(rows).sum().backward()
    assert rows.grad is not None
    assert not rows.grad.any()


def test_far_from_zero_few_digits_are_lost() -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 300
    torch.testing.assert_close(distances(rows.float()).double(), distances(rows), rtol=1e-4, atol=0)
