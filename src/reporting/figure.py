"""Finished runs as curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from src.reporting.results import Result, group_by_setting


def draw(results: Sequence[Result], path: Path) -> None:
    """The monitored score over epochs, a line a setting, the mean of its seeds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for setting, runs in group_by_setting(results).items():
        monitor = runs[0]["monitor"]
        curves = [{row["epoch"]: row[monitor] for row in run["history"] if monitor in row} for run in runs]
        epochs = sorted(set(curves[0]).intersection(*curves))
        means = [sum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs]
        axes.plot(epochs, means, marker=".", label=setting)
    monitors = sorted({result["monitor"] for result in results})
    axes.set(xlabel="epoch (0: untrained)", ylabel=f"{' or '.join(monitors)} (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
