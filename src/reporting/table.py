"""Finished runs as a Markdown table, ours beside the paper's."""

from collections.abc import Sequence

from src.reporting.results import Result, chosen_on, group_by_setting, paper_numbers


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a setting, mean and range over its seeds; last and best epoch apart."""
    lines = []
    for setting, runs in group_by_setting(results).items():
        labels = " (labels used)" if runs[0]["protocol"]["labels_used"] else ""
        paper = paper_numbers(runs[0])
        metrics = runs[0]["protocol"]["metrics"]
        for metric in (n for n in runs[0]["last"] if n.removeprefix("validation/").split("/")[0] in metrics):
            cells = [setting + labels, metric, len(runs)]
            for row in ("untrained", "last", "best"):
                cells.append(_spread([run[row][metric] for run in runs if run[row] and metric in run[row]]))
            lines.append([*cells, f"{paper[metric]:.1f}" if metric in paper else ""])
    facts = results[0]
    epochs = sorted({result["last"]["epoch"] for result in results} - {0}) or [0]
    held_out = sorted({result["protocol"].get("validation") or "" for result in results} - {""})
    limits = sorted({str(result["config"]["dataset"].get("limit") or "all") for result in results})
    heading = [
        "setting",
        "score (%)",
        "runs",
        "untrained",
        "last epoch",
        f"best epoch, chosen on {' or '.join(sorted({chosen_on(result['protocol']) for result in results}))}",
        "paper",
    ]
    head = (
        f"{facts['config']['dataset']['name']}, {' or '.join(limits)} training images, "
        + f"{' or '.join(held_out)} held out, " * bool(held_out)
        + f"{facts['protocol']['query']}; "
        f"{' or '.join(map(str, epochs))} epoch(s); {facts['hardware'].get('gpu', facts['hardware']['cpu'])}, "
        f"{facts['hardware']['cores']} cores, {facts['config']['trainer']['precision']}; torch "
        f"{facts['versions']['torch']}. The paper's numbers are of its own, full training."
    )
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join([head, "", *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"
