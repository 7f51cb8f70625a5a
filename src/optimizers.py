"""Optimizers that torch lacks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from src.hints import Betas, Momentum, NonNegative, Positive


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling: SGD whose every layer's step is in proportion to the norm of its weights.

        v = momentum v + lr trust |w| / (|g| + weight_decay |w|) (g + weight_decay w),  w = w - v

    Norms' and biases' parameters, of one dimension, step as by SGD (You, Gitman and Ginsburg, 2017; left out of the
    scaling as by Chen et al., ICML 2020).
    """

    def __init__(
        self, params: Any, lr: Positive, momentum: Momentum, weight_decay: NonNegative, trust: Positive
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                push = weight.grad.add(weight, alpha=group["weight_decay"])
                if weight.ndim > 1:
                    size = weight.norm()
                    against = weight.grad.norm() + group["weight_decay"] * size
                    push *= torch.where((size > 0) & (against > 0), group["trust"] * size / against, 1.0)
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                speed = state["momentum"].mul_(group["momentum"]).add_(push, alpha=group["lr"])
                weight.sub_(speed)
        return loss


class AdamP(Optimizer):
    """Adam less the part of a step along the weights, where those seem to be scaled by a norm behind them.

    That is where the gradient is nearly at right angles to the weights, |cos(g, w)| < delta / sqrt(size), in every
    output channel or in the layer as a whole. There the weight decay, which is AdamW's, is multiplied by `wd_ratio`
    too (Heo et al., ICLR 2021, Algorithm 2; their program clovaai/AdamP).
    """

    def __init__(
        self,
        params: Any,
        lr: Positive,
        betas: Betas,
        weight_decay: NonNegative,
        nesterov: bool,
        eps: Positive,
        delta: Positive,
        wd_ratio: NonNegative,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**defaults, "eps": eps, "delta": delta, "wd_ratio": wd_ratio})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                self._step(weight, weight.grad, group)
        return loss

    def _step(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[weight], group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
        state["step"] += 1
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square.sqrt() / math.sqrt(1 - second ** state["step"])).add_(group["eps"])
        ahead = mean * first + gradient * (1 - first) if group["nesterov"] else mean
        push, ratio = ahead / root, torch.ones((), device=weight.device)
        if weight.ndim > 1:
            push, ratio = _without_growth(weight, gradient, push, group["delta"], group["wd_ratio"])
        weight.mul_(1 - group["lr"] * group["weight_decay"] * ratio)
        weight.add_(push, alpha=-group["lr"] / (1 - first ** state["step"]))


def _without_growth(
    weight: Tensor, gradient: Tensor, push: Tensor, delta: float, ratio: float
) -> tuple[Tensor, Tensor]:
    """The step less its part along the weights, by channel, else by layer, and what weight decay is multiplied by.

    Nothing here waits for a device to say which it is.
    """
    chosen, decay = push, torch.ones((), device=weight.device)
    for rows in (1, len(weight)):
        flat, slope = weight.reshape(rows, -1), gradient.reshape(rows, -1)
        cosine = functional.cosine_similarity(flat, slope, dim=1, eps=1e-8).abs().max()
        scaled = cosine < delta / math.sqrt(flat.shape[1])
        unit = flat / (flat.norm(dim=1, keepdim=True) + 1e-8)
        along = (unit * push.reshape(rows, -1)).sum(1, keepdim=True)
        chosen = torch.where(scaled, push - (unit * along).view_as(weight), chosen)
        decay = torch.where(scaled, ratio, decay)
    return chosen, decay


def _evaluated(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
