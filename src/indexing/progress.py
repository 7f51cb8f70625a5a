"""How far long work is, on standard error, for who waits at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def showing(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of `what` is done of `total` (None: nobody knows), and how many a second; tell it how many are."""
    console = Console(stderr=True)
    speed = TextColumn("{task.fields[speed]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, speed="")

        def report(done: int) -> None:
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(task, completed=done, speed=f"{done / elapsed:.0f}/s")

        yield report
