"""Finished runs as figures: the curves of all methods (Figure 3), bars of ablations, similarities (Figures 5 and 6)."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.reporting.paper import quote
from src.reporting.results import Protocol, Result, curves_of
from src.reporting.tables import spread, title

# Okabe and Ito's colours, which the colour-blind tell apart, but for the yellow; styles tell the next seven apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
STYLES = ("-", "--", ":", "-.")
DPI = 150
PANELS, CURVES, SHOWN = 8, 21, 6  # as many protocols, settings of one, and histograms of one are drawn
NAME = 52  # letters of a setting's name in a line


def curves(protocols: Sequence[Protocol]) -> Figure:
    """The headline over epochs, a panel a protocol and a line a setting: mean and standard deviation of its seeds."""
    shown = protocols[:PANELS]
    figure = Figure(figsize=(8, 4.5 * len(shown)), dpi=DPI, layout="constrained")
    for axes, protocol in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        for number, (setting, runs) in enumerate(_best(protocol).items()):
            values_at = curves_of(runs, protocol.headline)
            points = {epoch: point for epoch, values in values_at.items() if (point := spread(values))}
            if not points:
                continue
            middle = [point.value for point in points.values()]
            width = [point.spread or 0 for point in points.values()]
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS)]
            axes.plot(list(points), middle, style, color=colour, marker="o", markersize=3, label=_plain(setting))
            low, high = zip(*((m - w, m + w) for m, w in zip(middle, width, strict=True)), strict=True)
            axes.fill_between(list(points), low, high, color=colour, alpha=0.12, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch (0: untrained)", ylabel=f"{protocol.headline} (%)")
        axes.grid(alpha=0.25)
        if axes.get_lines():
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
        _entitle(axes, protocol, protocols)
    return figure


def bars(protocols: Sequence[Protocol]) -> Figure:
    """The headline of the last epoch, a bar a setting with its seeds' standard deviation; the paper's beside it."""
    shown = protocols[:PANELS]
    counts = [min(len(protocol.settings), CURVES) for protocol in shown]
    figure = Figure(figsize=(10, sum(0.5 * count + 1.3 for count in counts)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(shown), squeeze=False, gridspec_kw={"height_ratios": [c + 1 for c in counts]})[:, 0]
    for axes, protocol in zip(grid, shown, strict=True):
        settings = _best(protocol)
        quoted = quote({setting: runs[0] for setting, runs in settings.items()})
        ours = [spread([run["last"].get(protocol.headline, math.nan) for run in runs]) for runs in settings.values()]
        theirs = [quoted[setting].get(protocol.headline) for setting in settings]
        height = 0.38 if any(theirs) else 0.6
        places = [place - height / 2 * any(theirs) for place in range(len(settings))]
        means, widths = [n.value if n else 0 for n in ours], [(n.spread if n else None) or 0 for n in ours]
        axes.barh(places, means, height, xerr=widths, color=COLOURS[0], capsize=3, label="ours: last epoch, ± std")
        _write_values(axes, places, [mean + width for mean, width in zip(means, widths, strict=True)], means)
        if any(theirs):
            beside = [(place + height, paper.value) for place, paper in zip(places, theirs, strict=True) if paper]
            where, values = map(list, zip(*beside, strict=True))
            axes.barh(where, values, height, color="white", edgecolor="#555555", hatch="///", label="the paper's")
            _write_values(axes, where, values, values)
        names = [f"{p.system}: {s}" if p else s for s, p in zip(settings, theirs, strict=True)]
        lines = ["\n".join(textwrap.wrap(name, NAME, max_lines=3, placeholder=" …")) for name in names]
        axes.set_yticks(range(len(settings)), map(_plain, lines), fontsize="small", linespacing=1)
        axes.invert_yaxis()
        axes.set(xlabel=f"{protocol.headline} (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize="small")
        _entitle(axes, protocol, protocols)
    return figure


def _write_values(axes: Axes, places: Sequence[float], ends: Sequence[float], values: Sequence[float]) -> None:
    for place, end, value in zip(places, ends, values, strict=True):
        axes.annotate(f"{value:.1f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize="small")


def histograms(protocols: Sequence[Protocol]) -> Figure | None:
    """Cosine similarities to the nearest of the same and of other categories: a row a setting, in both spaces.

    Of each setting it is the first run that has some; None where none has.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for protocol in protocols[:PANELS]:
        drawn = [
            (f"{setting}, seed {run['seed']}", run["histograms"])
            for setting, runs in protocol.settings.items()
            for run in [run for run in runs if run.get("histograms")][:1]
        ]
        rows += drawn[:SHOWN]
    columns = list(dict.fromkeys((space, group) for _, spaces in rows for space in spaces for group in spaces[space]))
    if not columns:
        return None
    columns = columns[:SHOWN]
    figure = Figure(figsize=(3.6 * len(columns) + 0.8, 2.4 * len(rows)), dpi=DPI, layout="constrained")
    for line, (name, spaces) in zip(figure.subplots(len(rows), len(columns), squeeze=False), rows, strict=True):
        for axes, (space, grouping) in zip(line, columns, strict=True):
            axes.set_title(_plain(f"{name}\n{space}, {grouping}"), fontsize="small", loc="left")
            axes.set(xlabel="cosine similarity", ylabel="density")
            if content := spaces.get(space, {}).get(grouping):
                for which, colour, hatch in (("same", COLOURS[0], None), ("other", COLOURS[1], "//")):
                    steps = (content[which], content["edges"])
                    axes.stairs(*steps, color=colour, label=f"{which} category", linewidth=1.5)
                    axes.stairs(*steps, color=colour, fill=True, alpha=0.25, hatch=hatch)
                axes.legend(frameon=False, fontsize="small")
    return figure


def _plain(text: str) -> str:
    """As it stands: between two dollars matplotlib reads formulas."""
    return text.replace("$", r"\$")


def _best(protocol: Protocol) -> dict[str, Sequence[Result]]:
    """The settings, in their order; of more than can be told apart, those that are best at the end."""

    def end(setting: str) -> float:
        number = spread(run["last"].get(protocol.headline, 0) for run in protocol.settings[setting])
        return number.value if number and math.isfinite(number.value) else -math.inf

    kept = sorted(protocol.settings, key=end, reverse=True)[:CURVES]
    return {setting: runs for setting, runs in protocol.settings.items() if setting in kept}


def _entitle(axes: Axes, protocol: Protocol, protocols: Sequence[Protocol]) -> None:
    count = len(protocol.settings)
    more = f" (the best {CURVES} of {count} settings)" * (count > CURVES)
    axes.set_title(_plain(f"{title(protocol, protocols)}{more}"), fontsize="medium", loc="left", wrap=True)
