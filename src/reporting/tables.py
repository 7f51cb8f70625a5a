"""Tables of finished runs, ours beside the paper's: one model of rows, as Markdown, as LaTeX, or for the page."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from src.reporting.paper import Quoted, budget, quote
from src.reporting.results import Protocol, Result, differing, group_by_protocol, scores_of
from src.scores import in_space

MEASURES = ("train/alignment", "geometry/uniformity", "geometry/rank")  # without labels
OTHER_BUDGET = "†"
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
}


class Number(NamedTuple):
    """A cell of a table.

    Args:
        value: the number, by which the column is sorted.
        digits: after the point.
        spread: standard deviation.
        to: the upper end of an interval that begins with `value`.
        note: what is written behind.
    """

    value: float
    digits: int = 2
    spread: float | None = None
    to: float | None = None
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.value:.{self.digits}f}"
        if self.spread is not None:
            text += f" ± {self.spread:.{self.digits}f}"
        if self.to is not None:
            text += f" to {self.to:.{self.digits}f}"
        return f"{text} {self.note}".rstrip()


Cell = str | Number | None


class Table(NamedTuple):
    columns: list[str]
    rows: list[list[Cell]]


def is_percent(score: str) -> bool:
    """Uniformity, effective rank and alignment are no shares of anything."""
    return not re.search(r"(^|/)(geometry|train)/", score)


def digits_of(score: str) -> int:
    """How many digits after the point tell two scores apart."""
    return 2 if is_percent(score) else 3


def spread(values: Iterable[float], digits: int = 2) -> Number | None:
    """The mean, and the standard deviation where there are several; None of no values."""
    known = list(values)
    if not known:
        return None
    if not all(map(math.isfinite, known)):
        return Number(math.nan, digits)
    mean = math.fsum(known) / len(known)
    squares = math.fsum((value - mean) ** 2 for value in known)
    return Number(mean, digits, math.sqrt(squares / (len(known) - 1)) if len(known) > 1 else None)


def scores(protocol: Protocol) -> Table:
    """A row a score and setting: seeds averaged, both spaces, the paper's number beside ours.

    The interval is that of one run, over its queries; the standard deviation is over the seeds. At the end stands what
    it took.
    """
    columns = [
        *("setting", "score", "runs", "untrained", "last epoch", "one run's 95% interval"),
        f"best epoch, chosen on {protocol.facts['best epoch chosen on']}",
        *("paper", "last - paper", f"{protocol.other}: untrained", f"{protocol.other}: last epoch"),
    ]
    quoted = quote({setting: runs[0] for setting, runs in protocol.settings.items()})
    rows = [
        _row(protocol, setting, score, quoted[setting].get(score))
        for score in scores_of(protocol)
        for setting, runs in protocol.settings.items()
        if any(score in run[row] for run in runs for row in ("untrained", "last"))
    ]
    for name, key in (("images/s", "images_per_s"), ("seconds", "wall_time_s")):
        for setting, runs in protocol.settings.items():
            took = spread([run[key] for run in runs], 1)
            rows.append([labelled(setting, runs), name, Number(len(runs), 0), None, took, *[None] * 6])
    return Table(columns, rows)


def _row(protocol: Protocol, setting: str, score: str, paper: Quoted | None) -> list[Cell]:
    runs, digits, aside = protocol.settings[setting], digits_of(score), in_space(score, protocol.other)
    untrained, last, best, *others = (
        spread([run[row][name] for run in runs if run[row] and name in run[row]], digits)
        for name, row in (
            *((score, row) for row in ("untrained", "last", "best")),
            *((aside, row) for row in ("untrained", "last")),
        )
    )
    difference = None
    if paper and last:
        difference = Number(last.value - paper.value, digits, note=OTHER_BUDGET * bool(budget(runs)))
    intervals = [(run["seed"], *run.get("intervals", {})[score]) for run in runs if score in run.get("intervals", {})]
    one: list[Cell] = [Number(low, digits, to=high, note=f"(seed {seed})") for seed, low, high in intervals[:1]]
    cited = Number(paper.value, 1, note=f"({paper.system}, Table {paper.table})") if paper else None
    start: list[Cell] = [labelled(setting, runs), score, Number(len(runs), 0), untrained, last]
    return [*start, *(one or [None]), best, cited, difference, *others]


def labelled(setting: str, runs: Sequence[Result]) -> str:
    """The setting, and whether it saw labels."""
    return setting + " (labels used)" * bool(runs[0]["protocol"]["labels_used"])


def agreement(protocol: Protocol) -> Table:
    """Spearman's rho of each measure that needs no label with the headline, over the last epochs of all runs.

    Only of measures that three or more runs have, and not all the same.
    """
    from scipy.stats import spearmanr

    rows: list[list[Cell]] = []
    for measure in (name for m in MEASURES for name in (m, in_space(m, protocol.other))):
        pairs = [(run["last"].get(measure), run["last"].get(protocol.headline)) for run in protocol.results]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(x + y)]
        if len(known) >= 3 and all(len(set(column)) > 1 for column in zip(*known, strict=True)):
            rows.append([measure, Number(float(spearmanr(known).statistic)), Number(len(known), 0)])
    return Table(["measure without labels", f"Spearman's rho with {protocol.headline}", "runs"], rows)


def title(protocol: Protocol, protocols: Sequence[Protocol]) -> str:
    """The dataset, and what tells these runs from those of the other protocols."""
    told = [f"{name}: {protocol.facts.get(name, '-')}" for name in differing(protocols) if name != "dataset"]
    return "; ".join([protocol.facts["dataset"], *told])


def remarks(protocol: Protocol) -> list[str]:
    """What must be known to read the numbers, a sentence each."""
    runs, facts = protocol.results, protocol.facts
    held_out = sorted({run["protocol"].get("validation") or "" for run in runs} - {""})
    epochs = sorted({int(run["last"]["epoch"]) for run in runs} - {0}) or [0]
    machines = dict.fromkeys(
        f"{run['hardware'].get('gpu') or run['hardware']['cpu']}, {run['hardware']['cores']} cores, "
        f"{run['config']['trainer']['precision']}, torch {run['versions']['torch']}"
        for run in runs
    )
    percent = all(map(is_percent, scores_of(protocol)))
    said = [
        f"{facts['training images']} training images, "
        + f"{' or '.join(held_out)} held out, " * bool(held_out)
        + f"{facts['test images']}; {' or '.join(map(str, epochs))} epoch(s).",
        f"On {' or '.join(machines)}.",
        f"The space that decides is the {protocol.space} one; {protocol.other} features are scored beside it.",
        "Scores are percent" + "." * percent + ", but for those of geometry/ and train/." * (not percent),
        "± is the standard deviation over seeds; an interval is a bootstrap over the queries of one run.",
    ]
    quoted = quote({setting: members[0] for setting, members in protocol.settings.items()})
    differences = budget([run for setting, members in protocol.settings.items() if quoted[setting] for run in members])
    if differences:
        said.append(f"{OTHER_BUDGET} Ours are of another budget than the paper's: {'; '.join(differences)}.")
    return said


def why_apart(protocols: Sequence[Protocol]) -> list[str]:
    """Where there are several protocols: what they differ in, a line each."""
    lines = []
    for name in differing(protocols):
        options = dict.fromkeys(protocol.facts.get(name, "not measured") for protocol in protocols)
        lines.append(f"{name}: {' or '.join(options)}")
    return lines


def table(results: Sequence[Result]) -> str:
    """Markdown: a table for each protocol, a row a score and setting; seeds averaged, last and best epoch apart."""
    protocols = group_by_protocol(results)
    parts = []
    if reasons := why_apart(protocols):
        parts.append(
            "These runs are not measured alike, so they are in tables of their own, which must not be compared. They "
            "differ in:\n\n" + "\n".join(f"- {escape(reason)}" for reason in reasons)
        )
    for protocol in protocols:
        agreeing = agreement(protocol)
        parts += [f"**{escape(title(protocol, protocols))}**", escape(" ".join(remarks(protocol)))]
        parts += [markdown(scores(protocol))] + [markdown(agreeing)] * bool(agreeing.rows)
    return "\n\n".join(parts)


def markdown(content: Table) -> str:
    """A pipe table; what has no number is empty."""
    rows: list[Sequence[Cell]] = [content.columns, ["---"] * len(content.columns), *content.rows]
    return "\n".join("| " + " | ".join(escape("" if c is None else str(c)) for c in row) + " |" for row in rows)


def escape(text: str) -> str:
    """A text in a line or a cell of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def latex(protocols: Sequence[Protocol]) -> str:
    """A table for each score of each protocol; needs the package booktabs."""
    parts = [r"% Needs \usepackage{booktabs}."]
    for protocol in protocols:
        content = scores(protocol)
        for score in dict.fromkeys(row[1] for row in content.rows):
            rows = [[row[0], *row[2:]] for row in content.rows if row[1] == score]
            used = [i for i in range(len(rows[0])) if i < 2 or any(row[i] is not None for row in rows)]
            columns = [content.columns[0], *content.columns[2:]]
            heading = f"{title(protocol, protocols)}; {score}. {' '.join(remarks(protocol))}"
            body = [" & ".join(_tex(str(row[i] or "--")) for i in used) + r" \\" for row in rows]
            parts += [
                r"\begin{table}",
                rf"\caption{{{_tex(heading)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(used) - 1)}}}",
                r"\toprule",
                " & ".join(_tex(columns[i]) for i in used) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
    return "\n".join(parts)


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
