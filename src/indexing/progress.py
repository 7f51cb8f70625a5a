"""How far the embedding is, for who waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.indexing.building import Counts


@contextmanager
def showing(total: int | None) -> Iterator[Callable[[Counts], None]]:
    """A bar with images per second, on a terminal; what it gives is to be told of each step."""
    speed = TextColumn("{task.fields[speed]}")
    columns = (BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not get_console().is_terminal) as progress:
        task = progress.add_task("", total=total, speed="")

        def report(counts: Counts) -> None:
            done = counts.embedded + counts.known + counts.left_out
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(task, completed=done, speed=f"{counts.embedded / elapsed:.0f} images/s")

        yield report
