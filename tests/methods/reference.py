"""What the tests of the losses share."""

import math
from typing import Any

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


def length(vector: Tensor) -> Tensor:
    """Of a vector; that of 0 is a constant, without the gradient that it has not."""
    return vector.square().sum().sqrt() if vector.any() else vector.new_zeros(())


def relative(s: Tensor) -> list[list[Tensor]]:
    """The distances of each row over their mean."""
    distances = [[length(a - b) for b in s] for a in s]
    return [[d / (sum(row) / len(row)) for d in row] for row in distances]


def alike(t: Tensor, image: list[int], sigma: float, k: int) -> list[list[float]]:
    """The weights of Kim et al., section 3.2, from what the teacher makes of each row and the image it is a view of."""
    rows, t = range(len(t)), torch.stack([row / length(row) for row in t])
    pairwise = [[math.exp(-(t[i] - t[j]).square().sum().item() / sigma) for j in rows] for i in rows]
    # A program's choice among the views of an image, which are all at 1, is open: the nearest.
    ranks = [sorted(rows, key=lambda j: (image[i] != image[j], -pairwise[i][j]))[:k] for i in rows]
    mutual = [{j for j in ranks[i] if i in ranks[j]} for i in rows]
    shared = [[len(mutual[i] & mutual[j]) / len(mutual[i]) if j in mutual[i] else 0 for j in rows] for i in rows]
    half = round(k / 2)
    smoothed = [[sum(shared[h][j] for h in ranks[i][:half]) / half for j in rows] for i in rows]
    context = [[(smoothed[i][j] + smoothed[j][i]) / 2 for j in rows] for i in rows]
    return [[(pairwise[i][j] + context[i][j]) / 2 for j in rows] for i in rows]


def relaxed(s: Tensor, w: list[list[float]], delta: float) -> Tensor:
    """The relaxed contrastive loss, a pair at a time."""
    d, rows, total = relative(s), range(len(s)), s.new_zeros(())
    for i in rows:
        for j in rows:
            if i != j:
                total = total + w[i][j] * d[i][j] ** 2 + (1 - w[i][j]) * (delta - d[i][j]).clamp(min=0) ** 2
    return total / (len(s) * (len(s) - 1))


def distilled(f: Tensor, g: Tensor) -> Tensor:
    """KL(g || f) of the softmax of minus the distances, a row and a column at a time."""
    total = f.new_zeros(())
    for near, target in zip(relative(f), relative(g.detach()), strict=True):
        q, p = torch.stack(near).neg().exp(), torch.stack(target).neg().exp()
        q, p = q / sum(q), p / sum(p)
        total = total + sum(p[j] * (p[j].log() - q[j].log()) for j in range(len(p)))
    return total / len(f)


def self_taught(f: Tensor, g: Tensor, t: Tensor, image: list[int], **options: Any) -> dict[str, Tensor]:
    """All of Kim et al.'s loss, of both heads' rows and the teacher's."""
    weights = alike(t, image, options["sigma"], options["k"])
    contrastive = (relaxed(f, weights, options["delta"]) + relaxed(g, weights, options["delta"])) / 2
    distillation = distilled(f, g)
    return {"loss": contrastive + distillation, "contrastive": contrastive, "distillation": distillation}


def assert_same(ours: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Value and gradients agree within 1e-10."""
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(value, inputs, retain_graph=True) for value in (ours, expected))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
