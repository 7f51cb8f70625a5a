"""What every epoch measured, kept through resumes, and drawn."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.callbacks.drawing import COLORS
from src.running import figures
from src.scores import VALIDATION, bare_of, is_aside

Row = dict[str, float]


class History(pl.Callback):
    """A row per epoch: its means and its scores; the row of epoch 0 is the untrained network's.

    In training it draws `curves.png` in the run folder, at most every ten seconds, and prints a line after each epoch
    where no terminal shows a progress bar.

    `legs` are the stretches that the run took, an interrupted one several: when each began (UTC), its seconds until its
    last checkpoint, or until now, and the epochs that it trained.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._started = time.perf_counter()
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self.legs: list[dict[str, Any]] = [{"began": began, "seconds": 0.0, "epochs": 0}]
        self._scores: Row = {}
        self._drawn = time.monotonic()  # a run of seconds draws once, when it is over

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._scores = {name: value for name, value in metrics.items() if not name.startswith("train/")}
        if trainer.state.fn == "validate":  # apart from training: the untrained network, or the last epoch's
            self.rows = self.rows or [{"epoch": 0}]
            self.rows[-1] |= self._scores

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._scores = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        means = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and not name.endswith("_step")
        }
        self.rows.append({"epoch": trainer.current_epoch + 1, **means, **self._scores})
        if trainer.is_global_zero:
            if time.monotonic() - self._drawn > 10:
                self.draw(Path(trainer.default_root_dir))
            if not sys.stdout.isatty():
                print(", ".join(f"{name} {value:.6g}" for name, value in self.rows[-1].items()), flush=True)

    def draw(self, folder: Path) -> None:
        """Draw the rows so far as `curves.png` in `folder`."""
        draw_curves(self.rows, folder / "curves.png")
        self._drawn = time.monotonic()

    def finish_leg(self) -> None:
        """Bring the present leg up to now."""
        before = sum(leg["epochs"] for leg in self.legs[:-1])
        trained = int(self.rows[-1]["epoch"]) if self.rows else 0
        self.legs[-1] |= {"seconds": round(time.perf_counter() - self._started, 1), "epochs": trained - before}

    def state_dict(self) -> dict[str, Any]:
        self.finish_leg()
        return {"rows": self.rows, "legs": self.legs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.legs = [*state_dict["legs"], self.legs[-1]]

    def median(self, name: str) -> float:
        """The middle of the epochs' values of `name`."""
        return median([row[name] for row in self.rows if name in row] or [0.0])

    def best(self, monitor: str) -> Row | None:
        """The trained epoch with the highest `monitor`, first of equals; None if none was scored."""
        scored = [row for row in self.rows if monitor in row and row["epoch"] > 0]
        return max(scored, key=lambda row: row[monitor], default=None)


def draw_curves(rows: list[Row], path: Path) -> None:
    """Over epochs the scores of `rows`, those of held-out images, the loss and its terms, and what needs no labels.

    A panel each, where there is something for it: a colour each score, its line dashed in the space that decides
    nothing. Scores of the first and the last epoch alone have no curve. The file is replaced whole.
    """
    scored = [{name for name in row if not name.startswith("train/")} for row in rows]
    curved = set.intersection(*[names for names in scored if len(names) > 1] or [set()]) - {"epoch"}
    trained = {name for row in rows for name in row if name.startswith("train/")}
    shape = {name for name in curved if "geometry/" in name}
    held_out = {name for name in curved - shape if name.startswith(VALIDATION)}
    ranks = {name for name in shape if name.endswith("/rank")}
    choice = {
        "score (%)": curved - shape - held_out,
        "validation score (%)": held_out,
        "loss": trained & {"train/loss", "train/positive", "train/negative"},
        "alignment, uniformity": shape - ranks | trained & {"train/alignment"},
        "effective rank": ranks,
    }
    panels = [
        (label, sorted(names, key=lambda name: (bare_of(name), is_aside(name))))
        for label, names in choice.items()
        if names or label == "score (%)"
    ]
    height = 3 * len(panels)  # inches
    figure = Figure(figsize=(9.5, height), dpi=120)
    # Placed by hand: a layout that measures every label would take as long as the drawing.
    figure.subplots_adjust(0.08, 0.55 / height, 0.69, 1 - 0.1 / height, hspace=0.07)
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, curves) in zip(column, panels, strict=True):
        colors: dict[str, str] = {}
        for name in curves:
            color = colors.setdefault(bare_of(name), COLORS[len(colors) % len(COLORS)])
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            line = "--" if is_aside(name) else "-"
            axes.plot(*zip(*points, strict=True), line, marker=".", color=color, label=name)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch (0: untrained)")
    figures.save(figure, path.with_suffix(""), ["png"])
