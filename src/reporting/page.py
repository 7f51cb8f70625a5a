"""The page of finished runs: tables, figures, pictures, and an `index.html` that needs nothing beside itself."""

import json
import math
import secrets
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from src.reporting import figures, tables
from src.reporting.pictures import embed, gather
from src.reporting.results import Protocol, Result, curves_of, group_by_protocol, settings_of
from src.reporting.tables import Cell, Number, Table, digits_of, labelled, spread
from src.running import runs
from src.running.figures import save
from src.running.runs import write_atomically
from src.scores import in_space

POINTS, NUMBERS = 80, 200_000  # of a curve, and of all curves of a protocol: more would make the page slow to open


def write(
    folder: Path,
    results: Sequence[Result],
    others: Iterable[tuple[str, str, str]],
    plans: Mapping[Path, Sequence[str]],
    refresh: int | None = None,
) -> None:
    """Write everything into `folder`, each file whole or not at all.

    Args:
        others: what is not in the tables: how it stands, where it is, and why.
        plans: the overrides of runs that a sweep planned, by folder.
        refresh: seconds after which the open page loads itself again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    protocols = group_by_protocol(results) if results else []
    drawn, left = {}, [*others]
    if protocols:
        write_atomically(folder / "tables.md", _clean(tables.table(results)) + b"\n")
        write_atomically(folder / "tables.tex", _clean(tables.latex(protocols)))
        for name, draw in (("curves", figures.curves), ("ablations", figures.bars), ("histograms", figures.histograms)):
            if (figure := draw(protocols)) is not None:
                save(figure, folder / name)
                drawn[name] = embed(Image.open(folder / f"{name}.png"))
    pictures, unread = gather(protocols, folder / "pictures")
    left += [("left out", where, why) for where, why in unread]
    html = _render(
        protocols, drawn, pictures, Table(["how", "where", "why"], [list(row) for row in left]), plans, refresh
    )
    write_atomically(folder / "index.html", _clean(html))


def _clean(text: str) -> bytes:
    return text.encode(errors="replace")  # a folder's name may be no Unicode


def _render(
    protocols: Sequence[Protocol],
    drawn: Mapping[str, str],
    pictures: Sequence[Mapping[str, str]],
    others: Table,
    plans: Mapping[Path, Sequence[str]],
    refresh: int | None,
) -> str:
    here, library = Path(__file__).parent, files("chartkick")
    sections = [_section(protocol, protocols, plans) for protocol in protocols]
    data = {
        "refresh": refresh,
        "sections": [section["data"] for section in sections],
        "others": _plain(others),
    }
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    licences = sorted(library.joinpath("licenses").iterdir(), key=lambda path: path.name)
    return environment.get_template("page.html").render(
        nonce=secrets.token_hex(12),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((here / "page.css").read_text()),
        script=Markup((here / "page.js").read_text()),
        library=Markup(library.joinpath("django/static/chartkick/Chart.bundle.js").read_text()),
        licences="\n\n".join(path.read_text().strip() for path in licences if path.name.startswith("LICENSE")),
        sections=sections,
        apart=tables.why_apart(protocols),
        finished=sum(len(protocol.results) for protocol in protocols),
        drawn=drawn,
        pictures=pictures,
        others=len(others.rows),
        data=data,
    )


def _section(protocol: Protocol, protocols: Sequence[Protocol], plans: Mapping[Path, Sequence[str]]) -> dict[str, Any]:
    agreeing = tables.agreement(protocol)
    return {
        "title": tables.title(protocol, protocols),
        "facts": protocol.facts,
        "remarks": tables.remarks(protocol),
        "headline": protocol.headline,
        "agreeing": bool(agreeing.rows),
        "data": {
            "headline": protocol.headline,
            "scores": _plain(tables.scores(protocol)),
            "agreement": _plain(agreeing),
            "runs": _plain(_runs(protocol)),
            "details": _details(protocol, plans),
            "curves": _curves(protocol),
        },
    }


def _runs(protocol: Protocol) -> Table:
    """A row a run: its headline, in both spaces, and what it took."""
    score, aside = protocol.headline, in_space(protocol.headline, protocol.other)
    digits = digits_of(score)

    def cell(row: Mapping[str, float] | None, name: str) -> Number | None:
        return Number(row[name], digits) if row and name in row else None

    columns = ["setting", "seed", "untrained", "last epoch", "95% interval", "best epoch", "epoch of the best"]
    rows: list[list[Cell]] = []
    for setting, members in protocol.settings.items():
        for run in members:
            best, (low, high) = run["best"], run.get("intervals", {}).get(score, (None, None))
            row: list[Cell] = [labelled(setting, members), Number(run["seed"], 0)]
            row += [cell(run["untrained"], score), cell(run["last"], score)]
            row += [Number(low, digits, to=high) if low is not None else None, cell(best, score)]
            row += [Number(best["epoch"], 0) if best and score in best else None, cell(run["last"], aside)]
            rows.append([*row, Number(run["images_per_s"], 1), Number(run["wall_time_s"], 1), run["folder"]])
    return Table([*columns, f"{protocol.other}: last epoch", "images/s", "seconds", "folder"], rows)


def _details(protocol: Protocol, plans: Mapping[Path, Sequence[str]]) -> dict[str, Any]:
    """The settings in which the runs differ with the usual value of each; of each run its values, and its command."""
    flat = [{key: _said(value) for key, value in settings_of(run).items()} for run in protocol.results]
    keys = sorted({key for settings in flat for key in settings})
    counts = {key: Counter(settings.get(key, "-") for settings in flat) for key in keys}
    varied = [key for key in keys if len(counts[key]) > 1]
    return {
        "keys": varied,
        "usual": [counts[key].most_common(1)[0][0] for key in varied],
        "runs": [[settings.get(key, "-") for key in varied] for settings in flat],
        "commands": [command(run, varied, plans) for run in protocol.results],
    }


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def command(run: Result, varied: Sequence[str], plans: Mapping[Path, Sequence[str]]) -> str:
    """The line that has `src.train` do the run again, in a new folder.

    It is what was typed for it, or what its sweep planned; of older runs, what it chose and its values of the settings
    `varied`, in which it differs from those beside it.
    """
    folder, choices = Path(run["folder"]), run["choices"]
    typed = runs.read_overrides(folder) or plans.get(folder)
    if typed is None:
        settings = settings_of(run) | {"seed": run["seed"]}
        own = [key for key in varied if not key.rpartition(".")[2].startswith("_") and key in settings]
        own = ["seed", "trainer.max_epochs", *own]
        typed = [f"{group}={choice}" for group, choice in choices.items() if choice]
        typed += [f"{key}={_said(settings[key])}" for key in dict.fromkeys(own)]
        if limit := settings.get("dataset.limit"):
            typed.append(f"dataset.limit={limit}")
    kept = [override for override in typed if not override.startswith(("run_dir=", "sweep_dir="))]
    return shlex.join(["python", "-m", "src.train", *kept])


def _curves(protocol: Protocol) -> dict[str, Any]:
    """By name, a curve a setting: epochs, means, standard deviations. Beyond what is light, names are only counted."""
    rows = [row for run in protocol.results for row in run["history"]]
    names = dict.fromkeys([protocol.headline, *(name for row in rows for name in row if name != "epoch")])
    lines: dict[str, list[list[list[float | None]]]] = {}
    room = NUMBERS
    for name in names:
        lines[name] = [_thin(curves_of(members, name)) for members in protocol.settings.values()]
        room -= sum(3 * len(curve[0]) for curve in lines[name])
        if room < 0:
            break
    return {"settings": list(protocol.settings), "lines": lines, "left_out": len(names) - len(lines)}


def _thin(curve: Mapping[int, Sequence[float]]) -> list[list[float | None]]:
    epochs = list(curve)
    step = math.ceil(len(epochs) / POINTS) or 1
    kept = sorted({*epochs[::step], *epochs[-1:]})
    points = [spread(curve[epoch]) for epoch in kept]
    return [
        [*kept],
        [_finite(point.value) if point else None for point in points],
        [_finite(point.spread) if point and point.spread is not None else None for point in points],
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(table: Table) -> dict[str, Any]:
    """For JSON: a number is `[value, digits, spread, to, note]`, without what is empty at its end."""

    def plain(cell: Cell) -> Any:
        if not isinstance(cell, Number):
            return cell
        parts = [_finite(part) if isinstance(part, float) else part for part in cell]
        while len(parts) > 2 and parts[-1] in (None, ""):
            parts.pop()
        return parts

    return {"columns": table.columns, "rows": [[plain(cell) for cell in row] for row in table.rows]}
