"""Finished runs as a table beside the paper's numbers, and as curves: `python -m src.report FOLDER [--figure FILE]`.

Runs that are not finished come before it, how far each is: running, failed, cut off, or waiting in a sweep.
"""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import argparse
import sys
from collections import Counter
from pathlib import Path

from src.reporting.results import find_results
from src.reporting.table import table
from src.running import cli
from src.sweeping.jobs import find_runs


def main() -> None:
    parser = argparse.ArgumentParser("python -m src.report", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="run folders, or folders that hold them")
    parser.add_argument("--figure", type=Path, help="also draw the curves into this file")
    options = parser.parse_args()
    if options.figure and not options.figure.parent.is_dir():
        raise FileNotFoundError(f"--figure {options.figure}: there is no folder {options.figure.parent}")
    found = find_runs(options.folder)
    for run, now in found.items():
        if now.kind != "finished":
            print(f"{now.kind:9}{run}  {now.text}".rstrip())
    counts = Counter(now.kind for now in found.values())
    if counts.keys() - {"finished"}:
        print(f"{len(found)} runs: {', '.join(f'{count} {kind}' for kind, count in counts.items())}\n")
        if not counts["finished"]:
            return
    results, left_out = find_results(options.folder)
    print(table(results))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if options.figure:
        from src.reporting.figure import draw

        draw(results, options.figure)


if __name__ == "__main__":
    cli.run(main, overrides=False)
