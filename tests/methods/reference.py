"""What the tests of the losses share."""

import torch
from torch import Tensor


def unit(rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random unit-norm rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def softmax(f: Tensor, w: Tensor, index: Tensor, temperature: float) -> Tensor:
    """Equations (1) and (2), a row and a class at a time."""
    total = f.new_zeros(())
    for row, i in enumerate(index.tolist()):
        exps = [(w[k] @ f[row] / temperature).exp() for k in range(len(w))]
        total = total - (exps[i] / torch.stack(exps).sum()).log()
    return total / len(f)


def assert_same(ours: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Value and gradients agree within 1e-10."""
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(value, inputs, retain_graph=True) for value in (ours, expected))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
