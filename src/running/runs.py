"""A run folder: who works in it, its config, its results."""

import json
import math
import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from src import settings
from src.running.checkpoints import find_last, has_checkpoint
from src.running.cli import as_text

# Settings that make no other run: where things lie, and how it is watched.
CACHES = ("cache_dir", "dataset.cache_dir", "backbone.cache_dir")
ASIDE = ("run_dir", "sweep_dir", *CACHES, "logger", "trainer.enable_progress_bar")
# What may change when a run goes on: none of it alters what an epoch learns.
FREE = (*ASIDE, "trainer.max_epochs", "callbacks.pictures", "graph")
# What settings that came later were before, by group; of networks and methods by what is made.
LATER: dict[str, dict[str, Any]] = {
    "": {
        "head": {},
        "decay": "all",
        "ema": None,
        "microbatch": None,
        "whitening": None,
        "mirror": False,
        "graph": False,
    },
    "head": {"hidden": [], "orthogonal": False},
    "dataset": {"view_milestones": [], "view_sizes": []},
    "recipe": {"pool": "average"},
    "protocol": {"final": {}},
}
LATER_OF: dict[str, dict[str, Any]] = {
    "src.backbones.resnet.": {"stride": 1},
    "src.backbones.inception.": {"pool": "average"},
    "src.methods.mom.": {"pool": None},
}
LOCK, HOLDER, PROGRESS, OVERRIDES = ".lock", ".holder", "progress.json", "overrides.json"
STOP = "stop"  # a file that ends a run after its epoch
PROBED = 1  # seconds: who only asks for the holder has the lock for a moment
MOST, DEEPEST = 2**17, 20  # characters and levels that a config has


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` as long as this process lives and the context lasts.

    Raises:
        FileExistsError: another process holds it; the message says which.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PROBED)
    except Timeout as error:
        who = _name_of(folder)
        raise FileExistsError(f"{folder} is being written by {who}: wait for it, or choose another run_dir") from error
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(folder / HOLDER, f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> str:
    """The process that has claimed `folder`, in words; empty where none has, or we may not know."""
    if not (folder / LOCK).exists():
        return ""
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return ""
    except Timeout:
        return _name_of(folder)
    except PermissionError:
        return ""


def _name_of(folder: Path) -> str:
    path = folder / HOLDER
    return path.read_text() if path.exists() else "another process"


def begin(folder: Path, config: DictConfig, overrides: Sequence[str] = ()) -> Path | None:
    """Make `folder` that of a run of `config`: new, or going on from its last checkpoint: by more epochs if finished.

    `overrides`, which were typed to have it, are kept for who wants it again, and the results of a finished run that
    goes on as `results-<epochs>.json`.

    Returns:
        The checkpoint that the run goes on from, if it does.

    Raises:
        FileExistsError: it holds a finished run, which nothing overwrites.
        ValueError: it holds a run of another config, of more epochs, or whose checkpoints are damaged.
    """
    results, path = folder / "results.json", folder / "config.yaml"
    done = read_results(folder)["last"]["epoch"] if results.exists() else None
    if done is not None and not (done and has_checkpoint(folder) and config.trainer.max_epochs > done):
        raise FileExistsError(
            f"{folder} holds a finished run (results.json) of {done} epochs: choose another run_dir"
            + (", or more trainer.max_epochs to go on with it" * bool(done and not _ends_with_its_epochs(config)))
        )
    last = find_last(folder, config.trainer.max_epochs)
    if (begun := begun_with(folder)) is not None:
        before, now = (telling(OmegaConf.to_container(each), FREE) for each in (begun, config))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            differences = ", ".join(f"{key}: {before.get(key)} became {now.get(key)}" for key in changed[:5])
            kind = "an unfinished" if done is None else "a finished"
            raise ValueError(f"{folder} holds {kind} run of another config ({differences}): choose another run_dir")
    if done is not None:
        os.replace(results, folder / f"results-{done}.json")
        (folder / STOP).unlink(missing_ok=True)  # it has ended the run before
    write_atomically(path, OmegaConf.to_yaml(config))
    write_atomically(folder / OVERRIDES, json.dumps(list(overrides), indent=1))
    return last


def _ends_with_its_epochs(config: DictConfig) -> bool:
    """Whether the learning rates depend on how many epochs there are, so that there can't be more afterwards."""
    return OmegaConf.select(config, "schedule.epochs") is not None


def begun_with(folder: Path) -> DictConfig | None:
    """The config of the run that `folder` holds, where it can go on; errors as of `load_config`."""
    return load_config(folder) if has_checkpoint(folder) and (folder / "config.yaml").exists() else None


def read_overrides(folder: Path) -> list[str] | None:
    """What was typed to have the run in `folder`; None where it did not keep that, or it is nothing of the kind."""
    try:
        overrides = json.loads((folder / OVERRIDES).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    sound = isinstance(overrides, list) and all(isinstance(override, str) for override in overrides)
    return overrides if sound else None


@contextmanager
def saying_how_to_go_on(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Where the run breaks off, by an error or a signal, print the command that goes on with it."""
    try:
        yield
    except BaseException:
        if has_checkpoint(folder):
            command = command_in("run_dir", folder, overrides)
            print(f"Not finished; this goes on from the last checkpoint: {command}", flush=True)
        raise


def command_in(key: str, folder: Path, arguments: Sequence[str]) -> str:
    """The line that has `src.train` do what `arguments` say in `folder`, as its setting `key`."""
    kept = [argument for argument in arguments if not argument.startswith(f"{key}=")]
    return shlex.join(["python", "-m", "src.train", *kept, as_text(key, folder)])


def locate(run: Path, checkpoint: str) -> tuple[Path, str]:
    """The folder of a run, and which of its checkpoints, where `run` may name one of them itself."""
    return (run.absolute().parent.parent, run.stem) if run.is_file() else (run, checkpoint)


def forget_initial_weights(config: DictConfig) -> None:
    """Have the network of a run made without the weights that it began with: a checkpoint has all it needs."""
    for name, value in (("pretrained", False), ("weights", None)):
        if name in config.backbone:
            config.backbone[name] = value


def load_config(folder: Path) -> DictConfig:
    """The resolved config of the run in `folder`, which may be anybody's: see `src.settings.check_foreign`.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the file is no such config, or names what this project does not make.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise FileNotFoundError(f"run={folder}: no run is there (config.yaml is missing)")
    try:
        text = path.read_text()
        if len(text) > MOST or "${" in text or not _is_simple(text):
            raise ValueError("it is not one that a run wrote")
        plain = yaml.safe_load(text)
        if not isinstance(plain, dict):
            raise ValueError("it holds no settings")
        bring_up_to_date(plain)
        settings.check_foreign(plain)
        return OmegaConf.create(plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be used: {' '.join(str(error).split())}") from error


def bring_up_to_date(plain: dict[str, Any]) -> None:
    """Say in the config of a run of an earlier version what it did by default."""
    for group, more in (*LATER.items(), ("backbone", {}), ("method", {})):
        node: Any = plain.get(group) if group else plain
        if isinstance(node, dict):
            target = str(node.get("_target_"))
            own: dict[str, Any] = next((each for name, each in LATER_OF.items() if target.startswith(name)), {})
            node |= {**deepcopy(more), **own, **node}
    schedule, recipe = plain.get("schedule"), plain.get("recipe")
    if isinstance(schedule, dict) and isinstance(recipe, dict) and schedule.keys() == {"milestones", "factors"}:
        recipe |= {"lr": 1.0, **schedule}
        schedule |= {"_target_": "src.schedules.MultiStep", "warmup": 0, "unit": "epochs"}


def _is_simple(text: str) -> bool:
    """Whether YAML says nothing twice (`*`), which can grow without end, and nests no deeper than configs do."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
            return False
    return True


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, whole or not at all."""
    write_atomically(folder / "results.json", json.dumps(results, indent=1))
    (folder / PROGRESS).unlink(missing_ok=True)


def write_progress(folder: Path, progress: dict[str, Any]) -> None:
    """Say how far an unfinished run is, for who looks from outside."""
    write_atomically(folder / PROGRESS, json.dumps(progress))


def read_progress(folder: Path) -> dict[str, Any]:
    """What `write_progress` wrote; empty where nothing is, or nothing that it would write."""
    try:
        progress = dict(json.loads((folder / PROGRESS).read_text()))
        numbers = [progress[name] for name in ("epoch", "epochs", "seconds_left")]
        for epoch, score in progress["scores"]:
            _ = f"{epoch:d} {score:.2f}"
        return progress if all(map(math.isfinite, numbers)) and isinstance(progress["monitor"], str) else {}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def read_results(folder: Path) -> dict[str, Any]:
    """What a finished run measured.

    Raises:
        ValueError: the file is damaged, or no run's.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
        int(results["last"]["epoch"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no run's results ({type(error).__name__}: {error})") from error
    return dict(results)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step; text is UTF-8."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def telling(plain: Any, aside: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a config by their full keys, but for those `aside`, and where the original of a set lies that is
    published, and so the same anywhere.
    """
    published = {"url", "urls"} & plain.get("dataset", {}).keys()
    left = (*aside, "dataset.root") if published else aside
    return {key: value for key, value in flat(plain).items() if not key.startswith(left)}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a config in dicts, by their full keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    dot = "." * bool(prefix)
    return {key: value for name in node for key, value in flat(node[name], f"{prefix}{dot}{name}").items()}
