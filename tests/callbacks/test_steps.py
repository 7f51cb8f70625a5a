"""What the steps of an epoch measure, by a clock that the test sets."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.callbacks.refresh import Refresh
from src.callbacks.steps import Steps


def made(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


class Hand:
    """A trainer, a module and a clock, moved by hand: four images a rank and step, on three ranks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refresh: float = 0.0) -> None:
        self.now, self.logged, self.weight = 0.0, dict[str, float](), torch.zeros(2)
        monkeypatch.setattr("src.callbacks.steps.time.perf_counter", lambda: self.now)
        looking = Refresh(0)
        looking.seconds = refresh
        options: dict[str, Any] = {"world_size": 3, "log_every_n_steps": 2, "callbacks": [looking], "current_epoch": 0}
        options |= {"global_step": 0, "is_last_batch": False}
        self.trainer = made(optimizers=[made(param_groups=[{"lr": 0.5}])], **options)
        self.module = made(log_dict=lambda values, **_: self.logged.update(values), parameters=lambda: [self.weight])
        self.steps = Steps()
        self.steps.on_train_start(self.trainer, self.module)

    def step(self, seconds: float, loss: float, last: bool = False, images: int = 4) -> None:
        self.now += seconds
        self.trainer.global_step += 1
        self.trainer.is_last_batch = last
        terms: dict[str, Tensor] = {"loss": torch.tensor(loss), "half": torch.tensor(loss / 2)}
        batch, number = {"index": torch.arange(images)}, self.trainer.global_step - 1
        self.steps.on_train_batch_end(self.trainer, self.module, {"terms": terms}, batch, number)

    def epoch(self, *losses: float) -> None:
        """Steps of two seconds, and five for what is done after them."""
        self.steps.on_train_epoch_start(self.trainer, self.module)
        for number, loss in enumerate(losses):
            self.step(2, loss, last=number == len(losses) - 1)
        self.now += 5
        self.steps.on_train_epoch_end(self.trainer, self.module)


def test_images_per_second_are_those_of_all_processes_since_the_epoch_began(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch)
    hand.now = 50
    hand.steps.on_train_epoch_start(hand.trainer, hand.module)
    hand.step(1, 3.0)
    assert not hand.logged, "not at every step"
    hand.step(1, 1.0)
    assert hand.logged == {"train/images_per_s": 12, "train/loss_step": 1, "train/half_step": 0.5}
    hand.step(2, 7.0, last=True)
    assert hand.logged["train/images_per_s"] == 9


def test_seconds_are_those_of_training_and_looking_but_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch, refresh=10)
    hand.epoch(1.0, 2.0, 3.0)
    assert hand.logged["train/seconds"] == 16
    assert hand.logged["train/loss"] == 2
    assert hand.logged["train/half"] == 1
    assert hand.logged["train/lr"] == 0.5
    hand.now += 100
    hand.trainer.optimizers[0].param_groups[0]["lr"] = 0.25
    hand.epoch(4.0, 6.0)
    assert hand.logged["train/seconds"] == 16 + 10 + 4
    assert hand.logged["train/loss"] == 5
    assert hand.logged["train/lr"] == 0.25


def test_where_nobody_looks_there_are_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after the epoch has its seconds, and none of what came later."""
    hand, kept = Hand(monkeypatch), dict[str, Any]()
    hand.trainer.callbacks = []
    hand.epoch(1.0, 2.0)
    hand.now += 50
    hand.steps.on_save_checkpoint(hand.trainer, hand.module, kept)
    assert hand.logged["train/seconds"] == kept["steps"]["seconds"] == 4


def test_a_checkpoint_within_an_epoch_has_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, kept = Hand(monkeypatch), dict[str, Any]()
    hand.epoch(9.0)
    hand.steps.on_train_epoch_start(hand.trainer, hand.module)
    hand.step(3, 1.0)
    hand.steps.on_save_checkpoint(hand.trainer, hand.module, kept)
    assert kept["steps"] == {"sums": {"loss": 1.0, "half": 0.5}, "steps": 1, "lr": 0.5, "seconds": 5}
    other = Hand(monkeypatch)
    other.steps.on_load_checkpoint(other.trainer, other.module, kept)
    other.steps.on_train_start(other.trainer, other.module)
    other.step(2, 3.0, last=True)
    other.steps.on_train_epoch_end(other.trainer, other.module)
    assert other.logged["train/loss"] == 2
    assert other.logged["train/seconds"] == 7
    other.steps.on_load_checkpoint(other.trainer, other.module, {})
    assert other.steps.seconds == 7, "a checkpoint of before there were any"


@pytest.mark.parametrize(("images", "said"), [(4, r"\[0, 1, 2\] and 1 more"), (2, r"\[0, 1\] and 0 more")])
def test_a_loss_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch, images: int, said: str) -> None:
    hand = Hand(monkeypatch)
    with pytest.raises(FloatingPointError, match=rf"inf at step 0 \(epoch 0, batch 0, images {said}\)"):
        hand.step(1, float("inf"), last=True, images=images)


def test_weights_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand(monkeypatch)
    hand.epoch(1.0)
    hand.weight[1] = torch.nan
    with pytest.raises(FloatingPointError, match="no longer finite in epoch 1"):
        hand.steps.on_save_checkpoint(hand.trainer, hand.module, {})
    with pytest.raises(FloatingPointError, match="no longer finite in epoch 1"):
        hand.epoch(1.0)
