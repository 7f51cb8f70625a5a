"""A job of a sweep: a run that is known by its settings, not by a number; its folder, its command, how it stands."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from omegaconf import open_dict

from src import settings
from src.running import runs
from src.running.checkpoints import EXPORTED, has_checkpoint
from src.running.cli import FULL, PARENT, SHOWN, as_text, settled

LONGEST = 160  # characters of a folder's name
PLAN, LOG, FAILURE = "sweep.json", "log.txt", ".failure"
WANDB = "wandb/*/files/config.yaml"  # W&B's own, of a run
HEADING = "$ "  # of what one command wrote into the log
Kind = Literal["finished", "running", "failed", "cut off", "waiting"]


@dataclass(frozen=True)
class Job:
    """A run of `sweep`, the folder of the whole.

    Args:
        overrides: `key=value` in Hydra's grammar, as of `python -m src.train`.
        flags: what else its command has.
        trainer: that group of its config.
        common: the overrides that all of the sweep have.
        place: the folder that its command is called in.
    """

    sweep: Path
    overrides: tuple[str, ...]
    flags: tuple[str, ...] = field(default=(), compare=False)
    trainer: Mapping[str, Any] = field(default_factory=dict, compare=False)
    common: frozenset[str] = field(default=frozenset(), compare=False)
    place: str = field(default_factory=os.getcwd, compare=False)

    @cached_property
    def name(self) -> str:
        """The overrides that make it this run, sorted; with a checksum where a file's name can't hold them."""
        telling = sorted(override for override in self.overrides if not is_aside(override))
        text = ",".join(telling) or "defaults"
        name = re.sub(r"[^\w.,=+~-]", "-", text)[:LONGEST]
        return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """What tells it from the others of its sweep."""
        return " ".join(override for override in self.overrides if override not in self.common) or self.name

    @cached_property
    def folder(self) -> Path:
        return self.sweep / self.name

    def devices(self, here: int) -> int:
        """How many it takes on each of its nodes, of so many that are `here`."""
        asked = self.trainer["devices"]
        if asked in (-1, "-1", "auto"):
            return here
        return int(asked) if isinstance(asked, (int, str)) else len(asked)

    @property
    def command(self) -> list[str]:
        """What a person would type to have this run."""
        places = [as_text("sweep_dir", self.sweep), as_text("run_dir", self.folder)]
        return [sys.executable, "-m", "src.train", *self.flags, *self.overrides, *places]


@dataclass(frozen=True)
class Standing:
    """How a run stands; `score` is the monitored one's of a finished run's last epoch, percent."""

    kind: Kind
    text: str = ""
    score: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)


def is_aside(override: str) -> bool:
    """Whether a setting, `key=value`, makes no other run."""
    key = override.lstrip("+~").partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in runs.ASIDE)


def make_jobs(config: Any, loader: Any, batch: Iterable[Sequence[str]]) -> list[Job]:
    """Jobs of Hydra's composed multirun `config`, one for each list of overrides.

    Every value is held to what it may be, in one composition each, not every combination of them: that takes a tenth of
    a second a job.

    Args:
        loader: Hydra's, which composes.

    Raises:
        ValueError: a setting is wrong, or two jobs are the same run.
        HydraException: a setting is none.
    """
    sweep = Path(config.sweep_dir or config.hydra.sweep.dir).absolute()
    overrides = config.hydra.overrides.hydra
    flags = [override for override in overrides if not re.match(r"[+~]*hydra[./](launcher|sweep|mode)", override)]
    if config.hydra.job.config_name != "train":
        flags.append(f"--config-name={config.hydra.job.config_name}")
    sources = config.hydra.runtime.config_sources
    flags += [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    seen: set[str] = set()
    composed: dict[tuple[str, ...], Any] = {}
    jobs: dict[str, Job] = {}
    lists = [tuple(overrides) for overrides in batch]
    common = frozenset.intersection(*map(frozenset, lists))
    for override in (override for overrides in lists for override in overrides):
        if override.lstrip("+~").startswith("run_dir="):
            raise ValueError(f"{override}: the runs of a multirun have folders of their own, in sweep_dir=FOLDER")
    for job_overrides in lists:
        # What says which devices a job takes.
        telling = tuple(o for o in job_overrides if re.match(r"[+~]*(trainer|experiment)\b", o))
        if telling not in composed or not seen.issuperset(job_overrides):
            seen.update(job_overrides)
            complete = loader.load_sweep_config(config, list(job_overrides))
            with open_dict(complete):
                del complete["hydra"]
            plain = settled(complete)
            settings.check(plain)
            composed[telling] = plain["trainer"]
        job = Job(sweep, job_overrides, tuple(flags), composed[telling], common)
        if job.name in jobs:
            raise ValueError(f"{', '.join(job_overrides)} is no other run than {', '.join(jobs[job.name].overrides)}")
        jobs[job.name] = job
    return list(jobs.values())


def standing(folder: Path) -> Standing:
    """Read from a run's folder, whoever writes it and wherever."""
    if (folder / "results.json").exists():
        try:
            results = runs.read_results(folder)
            score = float(results["last"][results["monitor"]])
        except (ValueError, KeyError, TypeError) as error:
            return Standing("failed", str(error))
        return Standing("finished", f"{results['monitor']} {score:.2f}", score)
    now = under_way(folder)
    if holder := runs.holder(folder):
        return replace(now, text=f"{now.text}; {holder}")
    progress = now.progress
    if (folder / FAILURE).exists():
        return Standing("failed", (folder / FAILURE).read_text(), progress=progress)
    if has_checkpoint(folder):
        return Standing("cut off", _reached(progress), progress=progress)
    return Standing("waiting")


def under_way(folder: Path) -> Standing:
    """How a run stands that is known to be running; `standing` asks for its holder too, which takes far longer."""
    progress = runs.read_progress(folder)
    left = f", {_duration(progress['seconds_left'])} left" if progress else ""
    return Standing("running", f"{_reached(progress) or 'not scored yet'}{left}", progress=progress)


def _reached(progress: Mapping[str, Any]) -> str:
    if not progress:
        return ""
    scored = f", {progress['monitor']} {progress['scores'][-1][1]:.2f}" if progress["scores"] else ""
    return f"epoch {progress['epoch']} of {progress['epochs']}{scored}"


def plan(sweep: Path, jobs: Iterable[Job]) -> None:
    """Add `jobs` to those that `sweep` is known to have, for who looks at it."""
    path = sweep / PLAN
    names = planned(sweep) | {job.name: list(job.overrides) for job in jobs}
    sweep.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(path, json.dumps({"jobs": names}, indent=1))


def planned(sweep: Path) -> dict[str, list[str]]:
    """The jobs of a sweep by name; none where the folder is no sweep's.

    Raises:
        ValueError: the file is damaged, or no sweep's.
    """
    path = sweep / PLAN
    if not path.exists():
        return {}
    try:
        jobs = json.loads(path.read_text())["jobs"]
        return {str(name): list(map(str, overrides)) for name, overrides in jobs.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no sweep's plan ({type(error).__name__}: {error})") from error


def find_runs(folders: Iterable[Path]) -> dict[Path, Standing]:
    """How the runs in `folders` and below stand, those included that a sweep has yet to begin.

    A folder in which something can't be read has failed, as has a sweep whose plan is damaged.
    """
    ours = (path.parent for folder in folders for path in folder.rglob("config.yaml") if not path.match(WANDB))
    found = {folder for folder in ours if not (folder / EXPORTED).exists()}
    stand: dict[Path, Standing] = {}
    for sweep in {path.parent for folder in folders for path in folder.rglob(PLAN)}:
        try:
            found |= {sweep / name for name in planned(sweep)}
        except (OSError, ValueError) as error:
            stand[sweep] = Standing("failed", str(error))
    for folder in sorted(found - stand.keys()):
        try:
            stand[folder] = standing(folder)
        except (OSError, ValueError) as error:
            stand[folder] = Standing("failed", f"it can't be read: {error}")
    return dict(sorted(stand.items()))


def start(
    job: Job, environment: Mapping[str, str], hold: Iterable[int] = (), without: Collection[str] = ()
) -> subprocess.Popen[bytes]:
    """Run a job in a process and session of its own, which writes what it says into the log of its folder.

    Args:
        environment: variables added to ours.
        hold: open files that the process shall keep open until it ends.
        without: variables of ours that are not its own.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FAILURE).unlink(missing_ok=True)
    ours = {name: value for name, value in os.environ.items() if name not in without}
    with (job.folder / LOG).open("ab") as log:
        log.write(f"{HEADING}{shlex.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            job.command,
            cwd=job.place,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**ours, FULL: str(int(SHOWN)), PARENT: str(os.getpid()), **environment},
            pass_fds=tuple(hold),
            start_new_session=True,  # Ctrl-C in the terminal is ours to hand on
        )


def say_error(job: Job, text: str) -> None:
    """Write into a job's log why it ended, where it could not say so itself."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError), (job.folder / LOG).open("a") as log:
        log.write(f"error: {' '.join(text.split())[:500]}\n")


def note_failure(job: Job, status: int) -> None:
    """Keep the line that says why a job ended with `status` and no results, if there are none."""
    if (job.folder / "results.json").exists() or runs.holder(job.folder):
        return
    try:
        said = (job.folder / LOG).read_text(errors="replace").rpartition(HEADING)[2]
    except OSError as error:
        said = f"\nerror: {error}"
    lines = said.splitlines()[1:]
    told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    how = f"ended by signal {-status}" if status < 0 else f"status {status}"
    runs.write_atomically(job.folder / FAILURE, told[-1].removeprefix("error: ") if told and status > 0 else how)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "less than a minute"
