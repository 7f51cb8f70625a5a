"""What a person watches while a sweep runs: a bar for the whole, a line for each job that runs, and one that stays for
each that ended."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from src.sweeping.jobs import Job, Kind, Standing

SAID = {"cut off": "goes on", "failed": "tried again", "waiting": "started"}  # of a job, by how it stood before


class Board:
    """Without a terminal it is the lines of what started and what ended alone."""

    def __init__(self, total: int) -> None:
        self.console = Console(soft_wrap=True)
        self.watched = self.console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.watched, transient=True)
        self.whole = self.bars.add_task("runs", total=total, said="")
        self.lines: dict[Job, TaskID] = {}

    def __enter__(self) -> "Board":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, job: Job, before: Kind) -> None:
        self._say(SAID.get(before, before), job, "")
        self.lines[job] = self.bars.add_task(f"  {job.label}", total=None, said="")

    def look(self, job: Job, now: Standing) -> None:
        """Bring the line of a job that runs up to date."""
        if now.progress:
            done, total = now.progress["epoch"], now.progress["epochs"]
            self.bars.update(self.lines[job], completed=done, total=total, said=now.text)

    def ended(self, job: Job, now: Standing, before: bool = False) -> None:
        """Of a job that is finished, maybe was so `before`, or has failed."""
        self._say("finished before" if before else now.kind, job, now.text)
        self.bars.advance(self.whole)
        if job in self.lines:
            self.bars.remove_task(self.lines.pop(job))

    def _say(self, what: str, job: Job, text: str) -> None:
        self.console.print(Text(f"{what:16}{job.label}  {text}".rstrip()))
