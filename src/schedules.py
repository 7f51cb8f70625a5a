"""What the learning rate is multiplied by at a step: pure functions of how far a run is, so that it resumes exactly."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, Protocol

from src.hints import Count, NonNegative, Positive, Share, Whole


class Schedule(Protocol):
    def __call__(self, step: int, steps: int) -> float:
        """The factor at `step`, counted from 0, of a run with `steps` steps an epoch."""


def in_steps(length: float, unit: str, steps: int) -> float:
    """A length in `epochs`, of `steps` each, or in `steps`."""
    return length * steps if unit == "epochs" else length


def warm(step: int, length: float) -> float:
    """A linear rise to 1 over the first `length` steps: 1/n, 2/n, … of n."""
    return min(1.0, (step + 1) / length) if length > 1 else 1.0


def cosine(share: float, first: float, last: float) -> float:
    """From `first` to `last` along half a cosine, as `share` goes from 0 to 1."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


class MultiStep:
    """From each milestone, an epoch, on, the rate is its factor of the initial one.

    Args:
        milestones: epochs, rising.
        factors: one for each.
        warmup: how many epochs or steps, as `unit` says, the rate rises linearly.

    Raises:
        ValueError: milestones and factors do not go together.
    """

    def __init__(
        self,
        milestones: Sequence[Count],
        factors: Sequence[Positive],
        warmup: NonNegative,
        unit: Literal["epochs", "steps"],
    ) -> None:
        if len(milestones) != len(factors) or list(milestones) != sorted(milestones):
            raise ValueError(
                f"schedule: milestones {list(milestones)} must rise and have a factor each, got {list(factors)}"
            )
        self.milestones, self.factors, self.warmup, self.unit = milestones, [1.0, *factors], warmup, unit

    def __call__(self, step: int, steps: int) -> float:
        rise = in_steps(self.warmup, self.unit, steps)
        return self.factors[bisect_right(self.milestones, step // steps)] * warm(step, rise)


class Cosine:
    """After the warm-up, half a cosine from 1 to `last` (Loshchilov and Hutter, ICLR 2017, without restarts).

    Args:
        epochs: until the rate is at its end, where it stays.
        last: of the initial rate, what is left in the end.
        warmup, unit: see `MultiStep`.
        every: whether the rate changes at each step, or at each epoch's first.
    """

    def __init__(
        self,
        epochs: Whole,
        last: NonNegative,
        warmup: NonNegative,
        unit: Literal["epochs", "steps"],
        every: Literal["step", "epoch"],
    ) -> None:
        self.epochs, self.last, self.warmup, self.unit, self.every = epochs, last, warmup, unit, every

    def __call__(self, step: int, steps: int) -> float:
        rise = in_steps(self.warmup, self.unit, steps)
        if step < rise:
            return warm(step, rise)
        now = step if self.every == "step" else step // steps * steps
        share = (now - rise) / max(self.epochs * steps - rise, 1)
        return cosine(min(max(share, 0.0), 1.0), 1, self.last)


class OneCycle:
    """A rise along half a cosine to the peak, 1, and a fall to almost nothing (Smith and Topin, 2018; as torch has it).

    Args:
        epochs: of the whole cycle; afterwards the rate stays at its end.
        rise: share of the steps before the peak.
        first: of the peak, what the rate begins with.
        last: of the peak, what it ends with.
    """

    def __init__(self, epochs: Whole, rise: Share, first: Positive, last: Positive) -> None:
        self.epochs, self.rise, self.first, self.last = epochs, rise, first, last

    def __call__(self, step: int, steps: int) -> float:
        end = max(self.epochs * steps - 1, 1)
        peak = max(self.rise * self.epochs * steps - 1, 1e-9)
        if step <= peak:
            return cosine(step / peak, self.first, 1)
        return cosine(min((step - peak) / max(end - peak, 1e-9), 1.0), 1, self.last)
