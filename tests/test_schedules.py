"""Schedules against torch's own, and against their words."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from src.schedules import Cosine, MultiStep, OneCycle

STEPS = 7  # an epoch


def rates(make: type, total: int, *options: object, **named: object) -> list[float]:
    """Of one of torch's schedulers, at each of its steps, of a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, *options, **named)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_that_of_torch_by_steps_and_by_epochs() -> None:
    by_steps, by_epochs = (Cosine(5, 0.1, 0, "epochs", every) for every in ("step", "epoch"))
    expected = rates(CosineAnnealingLR, 5 * STEPS, T_max=5 * STEPS, eta_min=0.1)
    assert [by_steps(step, STEPS) for step in range(5 * STEPS)] == pytest.approx(expected)
    assert by_steps(5 * STEPS, STEPS) == by_steps(50 * STEPS, STEPS) == pytest.approx(0.1), "it stays at its end"
    each = rates(CosineAnnealingLR, 5, T_max=5, eta_min=0.1)
    assert [by_epochs(step, STEPS) for step in range(5 * STEPS)] == pytest.approx(
        [rate for rate in each for _ in range(STEPS)]
    )


@pytest.mark.parametrize("rise", [0.3, 0.05, 0.9])
def test_one_cycle_is_that_of_torch(rise: float) -> None:
    ours = OneCycle(5, rise, 0.04, 4e-6)
    expected = rates(
        OneCycleLR, 5 * STEPS, max_lr=1.0, total_steps=5 * STEPS, pct_start=rise, cycle_momentum=False,
        div_factor=25, final_div_factor=1e4,
    )  # fmt: skip
    assert [ours(step, STEPS) for step in range(5 * STEPS)] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert ours(9 * STEPS, STEPS) == pytest.approx(4e-6)


@pytest.mark.parametrize(("warmup", "unit", "length"), [(2, "epochs", 14), (0.5, "epochs", 3.5), (5, "steps", 5)])
def test_warm_up_rises_linearly_and_ends_where_the_rest_begins(warmup: float, unit: str, length: float) -> None:
    constant, cosine = MultiStep([], [], warmup, unit), Cosine(10, 0, warmup, unit, "step")  # type: ignore[arg-type]
    for step in range(20):
        assert constant(step, STEPS) == pytest.approx(min(1, (step + 1) / length))
        share = (step - length) / (10 * STEPS - length)
        expected = min(1, (step + 1) / length) if step < length else (1 + math.cos(math.pi * share)) / 2
        assert cosine(step, STEPS) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Cosine(0, 0, 0, "epochs", "step"), OneCycle(0, 0.3, 0.04, 4e-6)])
def test_a_run_of_no_epochs_has_a_rate(schedule: Cosine | OneCycle) -> None:
    assert math.isfinite(schedule(0, STEPS))


@pytest.mark.parametrize(("milestones", "factors"), [((3, 2), (0.1, 0.1)), ((1, 2), (0.1,))])
def test_impossible_milestones_are_named(milestones: tuple[int, ...], factors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="schedule: milestones"):
        MultiStep(milestones, factors, 0, "epochs")
