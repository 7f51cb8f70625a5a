"""Our optimizers against loops over plain numbers, written from the papers, in float64."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from src.optimizers import LARS, AdamP
from tests.test_settings import plain

LR, DECAY = 0.1, 0.05


def problem() -> tuple[nn.ParameterList, Callable[[int], list[Tensor]]]:
    """Weights, of which one layer is scaled by a norm behind it, and their gradients at a step."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 2, 2)]
    weights = nn.ParameterList([nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes])

    def gradients(step: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(step + 1)
        found = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
        rows = weights[2].detach().flatten(1)
        slope = found[2].flatten(1)
        slope = slope - rows * (slope * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
        found[2] = slope.view(shapes[2]) + 1e-9
        return found

    return weights, gradients


def follow(
    optimizer: torch.optim.Optimizer, weights: nn.ParameterList, gradients: Callable[[int], list[Tensor]]
) -> None:
    for step in range(6):
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = gradient
        optimizer.step()


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_as_its_options_say(nesterov: bool) -> None:
    """v <- m v + g, w <- w - lr v; with Nesterov w - lr (g + m v). Sutskever et al., ICML 2013, as torch has it."""
    weights, gradients = problem()
    ours = [weight.detach().clone() for weight in weights]
    speeds = [torch.zeros_like(weight) for weight in ours]
    settings = [f"optimizer.nesterov={nesterov}", f"optimizer.lr={LR}", f"optimizer.weight_decay={DECAY}"]
    optimizer = instantiate(plain(*settings)["optimizer"])(weights)
    for step in range(6):
        pushes = gradients(step)
        for weight, gradient in zip(weights, pushes, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        for weight, speed, gradient in zip(ours, speeds, pushes, strict=True):
            push = gradient + DECAY * weight
            speed.mul_(0.9).add_(push)
            weight.sub_(LR * (push + 0.9 * speed if nesterov else speed))
    for weight, expected in zip(weights, ours, strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_lars_is_the_papers() -> None:
    weights, gradients = problem()
    plain = [weight.detach().flatten().tolist() for weight in weights]
    many = [weight.ndim > 1 for weight in weights]
    speeds = [[0.0] * len(values) for values in plain]
    optimizer = LARS(weights, lr=LR, momentum=0.9, weight_decay=DECAY, trust=0.02)
    for step in range(6):
        pushes = gradients(step)
        for weight, gradient in zip(weights, pushes, strict=True):
            weight.grad = gradient
        optimizer.step()
        for values, speed, gradient, scaled in zip(plain, speeds, pushes, many, strict=True):
            g = gradient.flatten().tolist()
            local = 0.02 * norm(values) / (norm(g) + DECAY * norm(values)) if scaled else 1.0
            for n in range(len(values)):
                speed[n] = 0.9 * speed[n] + LR * local * (g[n] + DECAY * values[n])
                values[n] -= speed[n]
    for weight, values in zip(weights, plain, strict=True):
        assert weight.flatten().tolist() == pytest.approx(values, rel=1e-12)


def test_lars_moves_a_layer_of_zeros() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=LR, momentum=0.9, weight_decay=DECAY, trust=0.02).step()
    assert torch.allclose(weight, torch.full((2, 2), -LR))


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamp_is_the_papers(nesterov: bool) -> None:
    weights, gradients = problem()
    shapes = [weight.shape for weight in weights]
    plain = [weight.detach().flatten().tolist() for weight in weights]
    means, squares = ([[0.0] * len(values) for values in plain] for _ in range(2))
    options = {"eps": 1e-8, "delta": 0.1, "wd_ratio": 0.3}
    optimizer = AdamP(weights, lr=LR, betas=(0.9, 0.99), weight_decay=DECAY, nesterov=nesterov, **options)
    projected = set()
    for step in range(6):
        slopes = gradients(step)
        for weight, gradient in zip(weights, slopes, strict=True):
            weight.grad = gradient
        optimizer.step()
        for layer, (values, gradient) in enumerate(zip(plain, slopes, strict=True)):
            g, push = gradient.flatten().tolist(), []
            for n in range(len(values)):
                means[layer][n] = 0.9 * means[layer][n] + 0.1 * g[n]
                squares[layer][n] = 0.99 * squares[layer][n] + 0.01 * g[n] ** 2
                ahead = 0.9 * means[layer][n] + 0.1 * g[n] if nesterov else means[layer][n]
                push.append(ahead / (math.sqrt(squares[layer][n] / (1 - 0.99 ** (step + 1))) + 1e-8))
            ratio = 1.0
            for rows in (shapes[layer][0], 1) if len(shapes[layer]) > 1 else ():
                width = len(values) // rows
                parts = [range(row * width, (row + 1) * width) for row in range(rows)]
                cosines = [
                    abs(sum(values[n] * g[n] for n in part))
                    / (norm([values[n] for n in part]) * norm([g[n] for n in part]))
                    for part in parts
                ]
                if max(cosines) < 0.1 / math.sqrt(width):
                    projected.add(layer)
                    ratio = 0.3
                    for part in parts:
                        along = sum(values[n] * push[n] for n in part) / norm([values[n] for n in part]) ** 2
                        for n in part:
                            push[n] -= along * values[n]
                    break
            for n in range(len(values)):
                values[n] *= 1 - LR * DECAY * ratio
                values[n] -= LR * push[n] / (1 - 0.9 ** (step + 1))
    assert projected == {2}, "the layer with a norm behind it, alone"
    for weight, values in zip(weights, plain, strict=True):
        assert weight.flatten().tolist() == pytest.approx(values, rel=1e-6)


def test_states_are_resumed_to_the_bit() -> None:
    for make in (
        lambda w: LARS(w, lr=LR, momentum=0.9, weight_decay=DECAY, trust=0.02),
        lambda w: AdamP(w, LR, (0.9, 0.99), DECAY, True, 1e-8, 0.1, 0.1),
    ):
        weights, gradients = problem()
        optimizer = make(weights)
        follow(optimizer, weights, gradients)
        again, same = problem()
        again.load_state_dict(weights.state_dict())
        other = make(again)
        other.load_state_dict(deepcopy(optimizer.state_dict()))
        follow(optimizer, weights, gradients)
        follow(other, again, same)
        assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
