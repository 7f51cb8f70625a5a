"""The rows of a run and their picture: when it is drawn, what it has, and what is printed."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from src.callbacks import history as history_module
from src.callbacks.history import History, draw_curves

MODULE: Any = None


def state(folder: Path, epoch: int = 0, first: bool = True, **metrics: float) -> Any:
    named = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    fitting = SimpleNamespace(fn="fit")
    return SimpleNamespace(
        callback_metrics=named, current_epoch=epoch, is_global_zero=first, default_root_dir=folder, state=fitting
    )


def test_curves_are_drawn_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = 0.0, list[tuple[int, Path]]()
    monkeypatch.setattr("src.callbacks.history.time.monotonic", lambda: now)
    monkeypatch.setattr(history_module, "draw_curves", lambda rows, path: drawn.append((len(rows), path)))
    history = History()
    for epoch, now in enumerate((0.0, 10.0, 10.5, 20.0, 21.0)):  # noqa: B007
        history.on_train_epoch_end(state(tmp_path, epoch), MODULE)
    assert drawn == [(rows, tmp_path / "curves.png") for rows in (3, 5)], "after more than ten seconds"
    now = 40.0
    history.on_train_epoch_end(state(tmp_path, first=False), MODULE)
    assert len(drawn) == 2, "by the first rank alone"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_an_epoch_where_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    history = History()
    measured: dict[str, Any] = {"train__loss": 1.23456789, "train__loss_step": 9.0}
    history.on_train_epoch_start(state(tmp_path), MODULE)
    history.on_validation_end(state(tmp_path, knn__top1=50.0, **measured), MODULE)
    history.on_train_epoch_end(state(tmp_path, 4, knn__top1=50.0, **measured), MODULE)
    assert history.rows == [{"epoch": 5, "train/loss": pytest.approx(1.23456789), "knn/top1": 50.0}]
    assert capsys.readouterr().out == ("" if terminal else "epoch 5, train/loss 1.23457, knn/top1 50\n")


def test_the_stretches_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("src.callbacks.history.time.perf_counter", lambda: now)
    history = History()
    assert re.fullmatch(r"....-..-..T..:..:..\+00:00", history.legs[0]["began"])
    for _ in range(2):
        assert [history.legs[0][name] for name in ("seconds", "epochs")] == [0, 0], "nothing trained yet"
        history.finish_leg()
    history.rows, now = [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}], 107.26
    kept = history.state_dict()
    assert [(leg["seconds"], leg["epochs"]) for leg in kept["legs"]] == [(7.3, 2)]
    for epoch, seconds in ((3, 2.0), (4, 5.0)):
        now = 200.0
        other = History()
        other.load_state_dict(kept)
        other.rows, now = [*other.rows, {"epoch": epoch}], 200 + seconds
        kept = other.state_dict()
    assert [(leg["seconds"], leg["epochs"]) for leg in other.legs] == [(7.3, 2), (2.0, 1), (5.0, 1)]
    assert [row["epoch"] for row in other.rows] == [0, 1, 2, 3, 4]


def test_the_middle_and_the_best_of_what_there_is() -> None:
    history = History()
    assert history.median("a") == 0
    assert history.best("b") is None
    history.rows = [{"epoch": 0, "b": 9.0}, {"epoch": 1, "a": 3.0, "b": 1.0}, {"epoch": 2, "a": 5.0}]
    assert history.median("a") == 4
    assert history.best("b") == history.rows[1], "the untrained network is none"


def drawn_by(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float]]) -> Figure:
    """The figure of these rows."""
    figures: list[Figure] = []

    def make(**options: Any) -> Figure:
        figures.append(Figure(**options))
        return figures[-1]

    monkeypatch.setattr(history_module, "Figure", make)
    draw_curves(rows, folder / "curves.png")
    assert [path.name for path in folder.iterdir()] == ["curves.png"]
    return figures[0]


def panels(figure: Figure) -> dict[str, list[str]]:
    """By the label of a panel its curves."""
    assert len({axes.get_ylabel() for axes in figure.axes}) == len(figure.axes)
    return {axes.get_ylabel(): [str(line.get_label()) for line in axes.lines] for axes in figure.axes}


def test_a_panel_for_each_kind_of_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = {"knn/top1": 10.0, "geometry/rank": 5.0, "pooled/geometry/uniformity": -3.0, "validation/knn/top1": 11.0}
    trained = {"train/loss": 1.0, "train/positive": 0.4, "train/negative": 0.6, "train/alignment": 0.2, "train/lr": 0.1}
    rows = [{"epoch": 0, "linear/svm": 3.0, **scored}, {"epoch": 1, **trained, **scored}, {"epoch": 2, **trained}]
    assert panels(drawn_by(tmp_path, monkeypatch, rows)) == {
        "score (%)": ["knn/top1"],
        "validation score (%)": ["validation/knn/top1"],
        "loss": ["train/loss", "train/negative", "train/positive"],
        "alignment, uniformity": ["pooled/geometry/uniformity", "train/alignment"],
        "effective rank": ["geometry/rank"],
    }


def test_a_score_has_one_color_and_is_dashed_where_it_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = ["clustering/NMI", "pooled/clustering/NMI", "retrieval/R@1", "pooled/retrieval/R@1"]
    figure = drawn_by(tmp_path, monkeypatch, [{"epoch": 0} | dict.fromkeys(reversed(scores), 10.0)])
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert panels(figure) == {"score (%)": scores}
    assert [style for _, style in looks] == ["-", "--", "-", "--"]
    (nmi, _), (other_nmi, _), (recall, _), (other_recall, _) = looks
    assert nmi == other_nmi != recall == other_recall


def test_the_key_stands_beside_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"epoch": 0, "knn/top1": 10.0, "validation/pooled/geometry/uniformity": -3.0}]
    figure = drawn_by(tmp_path, monkeypatch, rows)
    for axes in figure.axes:
        key = axes.get_legend()
        assert key is not None
        assert axes.get_window_extent().x1 <= key.get_window_extent().x0
        assert key.get_window_extent().x1 <= figure.bbox.x1, "whole, also the longest name"


def test_a_single_score_has_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"epoch": 0, "knn/top1": 10.0}, {"epoch": 1, "knn/top1": 20.0}]
    (line,) = drawn_by(tmp_path, monkeypatch, rows).axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[0, 10], [1, 20]]


def test_nothing_measured_is_an_empty_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_by(tmp_path, monkeypatch, [{"epoch": 0}])
    assert panels(figure) == {"score (%)": []}
    assert figure.axes[0].get_legend() is None


def test_curves_replace_the_file_whole(tmp_path: Path) -> None:
    for rows in ([{"epoch": 0, "knn/top1": 10.0}], [{"epoch": 0, "knn/top1": 10.0}, {"epoch": 1, "train/loss": 1.0}]):
        draw_curves(rows, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_scores_have_a_panel_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    row = {"epoch": 1, "knn/top1": 10.0, "pooled/knn/top1": 11.0, "train/loss": 1.0, "train/lr": 0.1}
    if held_out:
        row |= {"validation/knn/top1": 12.0, "validation/pooled/knn/top1": 13.0}
    figure = drawn_by(tmp_path, monkeypatch, [row])
    drawn = [[(line.get_label(), line.get_linestyle()) for line in axes.lines] for axes in figure.axes]
    assert all(line.get_marker() == "." for axes in figure.axes for line in axes.lines), "one epoch is a point"
    validation = [("validation/knn/top1", "-"), ("validation/pooled/knn/top1", "--")]
    tested = [("knn/top1", "-"), ("pooled/knn/top1", "--")]
    assert drawn == [tested, *[validation] * held_out, [("train/loss", "-")]]
