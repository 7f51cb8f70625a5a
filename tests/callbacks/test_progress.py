"""What the bar shows, and for how long a run still takes."""

from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import RichProgressBar

from src.callbacks.progress import Progress

MODULE: Any = None


def test_the_bar_shows_the_scores_to_choose_by() -> None:
    scores = {"knn/top1": 1.0, "pooled/knn/top1": 2.0, "train/loss_step": 3.0, "train/loss": 4.0, "geometry/rank": 5.0}
    state: Any = SimpleNamespace(training=False, callback_metrics=scores)
    assert Progress().get_metrics(state, MODULE) == {"knn/top1": 1.0, "loss": 3.0}
    scores |= {"validation/knn/top1": 5.0, "validation/pooled/knn/top1": 6.0, "validation/linear/svm": 7.0}
    scores |= {"train/images_per_s": 8.0, "validation/similarity/AUC": 9.0}
    assert Progress().get_metrics(state, MODULE) == {"val/knn/top1": 5.0, "loss": 3.0, "images/s": 8.0}


def test_the_time_left_is_the_whole_runs_at_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("src.callbacks.progress.time.monotonic", lambda: now)
    shown: list[Any] = []
    monkeypatch.setattr(RichProgressBar, "on_train_start", lambda *given: shown.append(given))
    run = {"max_epochs": 5, "num_training_batches": 39, "log_every_n_steps": 10, "is_last_batch": False}
    run |= {"accumulate_grad_batches": 2}
    state: Any = SimpleNamespace(training=True, callback_metrics={"train/loss_step": 3.0}, global_step=10, **run)
    bar = Progress()
    bar.on_train_start(state, MODULE)  # a run that goes on has steps behind it
    assert shown == [(bar, state, MODULE)]
    assert bar.get_metrics(state, MODULE) == {"loss": 3.0}, "no step, no pace"
    now, state.global_step = 140.0, 30
    assert bar.get_metrics(state, MODULE) == {"loss": 3.0, "left": "0:02:20"}, "70 steps of 2 s"
    state.global_step, state.callback_metrics = 31, {"train/loss_step": 2.0}
    assert bar.get_metrics(state, MODULE)["loss"] == 3.0, "not at every step"
    now, state.global_step = 280.0, 100
    assert bar.get_metrics(state, MODULE) == {"loss": 2.0, "left": "0:00:00"}
    state.global_step, state.max_epochs = 110, None
    assert bar.get_metrics(state, MODULE)["left"] == "0:00:00"
    state.training = False
    assert "left" not in bar.get_metrics(state, MODULE)


@pytest.mark.parametrize("shown", [True, False])
def test_other_passes_have_a_bar_of_their_own(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    said: list[Any] = []
    bar = Progress()

    def add(total: int, description: str) -> int:
        said.append((description, total))
        return 7

    monkeypatch.setattr(bar, "_add_task", add)
    monkeypatch.setattr(bar, "_update", lambda task, done: said.append((task, done)))

    def start(trainer: Any) -> None:  # as in the first pass of a run, which no other bar came before
        said.append(trainer)
        monkeypatch.setattr(bar, "progress", SimpleNamespace(remove_task=lambda task: said.append(task)))

    monkeypatch.setattr(bar, "_init_progress", start)
    bar._trainer = trainer = SimpleNamespace()  # type: ignore[assignment]
    if not shown:
        bar.disable()
    assert list(bar.track("abc", 3, "Features")) == ["a", "b", "c"]
    assert said == ([trainer, ("Features", 3), (7, 1), (7, 2), (7, 3), 7] if shown else [])
    bar.disable()
    said.clear()
    assert list(bar.track("abc", 3, "Features")) == ["a", "b", "c"]
    assert not said
