"""Figures are files that open, the same for the same runs, and of few runs too."""

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from src.reporting import figures
from src.reporting.figures import CURVES
from src.reporting.results import group_by_protocol
from src.running.figures import save
from tests.reporting.conftest import changed
from tests.reporting.test_results import HISTOGRAM


def untrained(result: dict[str, Any]) -> dict[str, Any]:
    run = changed(result, 5, choices__method="untrained", best=None)
    return run | {"history": run["history"][:1], "last": run["untrained"]}


def test_files_open_and_are_the_same_again(result: dict[str, Any], tmp_path: Path) -> None:
    protocols = group_by_protocol([changed(result, seed) for seed in range(3)] + [untrained(result)])
    for name, draw in (("curves", figures.curves), ("bars", figures.bars)):
        save(draw(protocols), tmp_path / name)
        first = (tmp_path / f"{name}.svg").read_bytes()
        save(draw(protocols), tmp_path / name)
        assert (tmp_path / f"{name}.svg").read_bytes() == first
        assert ElementTree.fromstring(first).tag.endswith("svg")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 600
    assert len(list(tmp_path.iterdir())) == 4


def test_odd_names_and_runs_without_a_score_stop_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    """Between dollars there would be a formula, which need not be one."""
    odd, silent = changed(result, choices__method=r"$\frac$"), changed(result, choices__method="silent")
    silent["history"] = []
    protocols = group_by_protocol([changed(result), odd, silent])
    for draw in (figures.curves, figures.bars, figures.histograms):
        if drawn := draw(protocols):
            save(drawn, tmp_path / draw.__name__)
    (axes,) = figures.curves(protocols).axes
    assert len(axes.lines) == 2
    (axes,) = figures.curves(group_by_protocol([silent])).axes
    assert not axes.lines


def test_curves_are_means_with_a_band(result: dict[str, Any]) -> None:
    runs = [changed(result, seed) for seed in range(3)]
    (axes,) = figures.curves(group_by_protocol(runs)).axes
    (line,) = axes.lines
    for epoch, value in np.asarray(line.get_xydata()):
        values = [run["history"][int(epoch)]["knn/top1"] for run in runs]
        assert value == pytest.approx(sum(values) / 3)
    assert len(axes.collections) == 1


def test_bars_stand_beside_the_papers(result: dict[str, Any]) -> None:
    runs = [
        changed(result, seed, choices__augmentation=name, config__dataset__name="cifar10")
        for seed in (0, 1)
        for name in ("full", "no_crop")
    ]
    (axes,) = figures.bars(group_by_protocol(runs)).axes
    ours, theirs = ([bar.get_width() for bar in group] for group in axes.containers if hasattr(group, "patches"))
    assert ours[0] == pytest.approx((runs[0]["last"]["knn/top1"] + runs[2]["last"]["knn/top1"]) / 2)
    assert theirs == [83.6, 56.2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Full: augmentation=full",
        "w/o R: augmentation=no_crop",
    ]


def test_long_names_are_inside_of_the_figure(result: dict[str, Any]) -> None:
    runs = [
        changed(result, 0, config__method__temperature=t, config__method__negatives=n, config__method__positives=p)
        for t in (0.05, 0.5)
        for n in ("all", "hard")
        for p in ("self", "nearest")
    ]
    figure = figures.bars(group_by_protocol(runs))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 8
    assert min(box.x0 for box in boxes) >= 0
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


def test_of_too_many_settings_the_best_are_drawn(result: dict[str, Any]) -> None:
    runs = [changed(result, config__method__temperature=number / 100, last__x=1.0) for number in range(1, CURVES + 4)]
    for number, run in enumerate(runs):
        run["last"]["knn/top1"] = float(number)
    (axes,) = figures.bars(group_by_protocol(runs)).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"method.temperature={number / 100}" for number in range(4, CURVES + 4)]
    assert f"the best {CURVES} of {CURVES + 3} settings" in axes.get_title(loc="left")


def test_histograms_are_those_of_the_run(result: dict[str, Any]) -> None:
    assert figures.histograms(group_by_protocol([changed(result, histograms={})])) is None
    spaces = {"embedding": {"classes": HISTOGRAM, "animals": HISTOGRAM}, "pooled": {"classes": HISTOGRAM}}
    figure = figures.histograms(
        group_by_protocol([changed(result, 1, histograms={}), changed(result, histograms=spaces)])
    )
    assert figure is not None
    assert [axes.get_title(loc="left").split("\n")[1] for axes in figure.axes] == [
        "embedding, classes",
        "embedding, animals",
        "pooled, classes",
    ]
    values, edges, _ = figure.axes[0].patches[0].get_data()  # type: ignore[attr-defined]
    assert (list(values), list(edges)) == (HISTOGRAM["same"], HISTOGRAM["edges"])
