"""Finished runs as tables and figures beside the paper's, and as a page: `python -m src.report FOLDER… [--out PAGE]`.

Runs that are not finished come before it, how far each is: running, failed, cut off, or waiting in a sweep.
"""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.reporting.results import find_results
from src.reporting.tables import table
from src.running import cli
from src.sweeping.jobs import PLAN, Standing, find_runs, planned

PAUSE = 5  # seconds between two looks at a sweep that runs


def main() -> None:
    parser = argparse.ArgumentParser("python -m src.report", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="run folders, or folders that hold them")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="also write tables, figures and index.html into it")
    parser.add_argument("--watch", action="store_true", help="write PAGE again every few seconds until all have ended")
    options = parser.parse_args()
    if options.watch and not options.out:
        raise ValueError("--watch: say with --out PAGE which page to keep")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a folder's name may be no Unicode
    if options.watch:
        signals.instead(lambda number: None)  # a signal ends the watch, not the process: the page is written once more
    found, results, left_out = _look(options.folder)
    while options.watch and not signals.asked() and any(map(_goes_on, found.values())):
        _write_page(options.out, options.folder, found, results, left_out, PAUSE)
        _wait()
        found, results, left_out = _look(options.folder)
    for run, now in found.items():
        if now.kind != "finished":
            print(f"{now.kind:9}{run}  {now.text}".rstrip())
    counts = Counter(now.kind for now in found.values())
    if counts.keys() - {"finished"}:
        print(f"{len(found)} runs: {', '.join(f'{count} {kind}' for kind, count in counts.items())}\n")
    if not results and not counts.keys() - {"finished", "failed"}:
        reasons = "; ".join(left_out) or "name folders of finished runs"
        raise FileNotFoundError(f"no run's results.json in {', '.join(map(str, options.folder))}: {reasons}")
    if results:
        print(table(results))
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if options.out:
        _write_page(options.out, options.folder, found, results, left_out)
        print(f"\n{options.out / 'index.html'}")
    if signals.asked():
        signals.leave()


def _look(folders: Sequence[Path]) -> tuple[dict[Path, Standing], list[dict[str, Any]], list[str]]:
    return find_runs(folders), *find_results(folders)


def _write_page(
    page: Path,
    folders: Sequence[Path],
    found: Mapping[Path, Standing],
    results: Sequence[dict[str, Any]],
    left_out: Sequence[str],
    refresh: int | None = None,
) -> None:
    from src.reporting.page import write

    plans: dict[Path, list[str]] = {}
    for path in (path for folder in folders for path in folder.rglob(PLAN)):
        with suppress(OSError, ValueError):  # find_runs has said so
            plans |= {path.parent / name: overrides for name, overrides in planned(path.parent).items()}
    others = [(str(now.kind), str(run), now.text) for run, now in found.items() if now.kind != "finished"]
    others += [("left out", line, "") for line in left_out]
    write(page, results, others, plans, refresh)


def _goes_on(now: Standing) -> bool:
    return now.kind not in ("finished", "failed")


def _wait() -> None:
    """Until it is time for another look, or a signal came."""
    end = time.monotonic() + PAUSE
    while time.monotonic() < end and not signals.asked():
        time.sleep(0.1)


if __name__ == "__main__":
    cli.run(main, overrides=False)
