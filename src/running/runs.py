"""A run folder: its config, its checkpoints, its results; and the processes that fill it."""

import builtins
import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What may change when a run goes on: none of it alters what an epoch learns.
FREE = ("trainer.max_epochs", "trainer.enable_progress_bar", "logger", "run_dir", "cache_dir")


def begin(folder: Path, config: DictConfig) -> None:
    """Claim `folder` for a run of `config`, new or going on from its last checkpoint.

    Raises:
        FileExistsError: it holds a finished run, which nothing overwrites.
        ValueError: it holds an unfinished run of another config.
    """
    if (folder / "results.json").exists():
        raise FileExistsError(f"{folder} holds a finished run (results.json): choose another run_dir")
    path = folder / "config.yaml"
    if last_checkpoint(folder) and path.exists():
        before, now = _flat(OmegaConf.load(path)), _flat(config)
        changed = sorted(
            key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and not key.startswith(FREE)
        )
        if changed:
            differences = ", ".join(f"{key}: {before.get(key)} became {now.get(key)}" for key in changed[:5])
            raise ValueError(
                f"{folder} holds an unfinished run of another config ({differences}): choose another run_dir"
            )
    write_atomically(path, OmegaConf.to_yaml(config))


def load_config(folder: Path) -> DictConfig:
    """The resolved config of the run in `folder`.

    Raises:
        FileNotFoundError: there is no run.
    """
    if not (folder / "config.yaml").exists():
        raise FileNotFoundError(f"run={folder}: no run is there (config.yaml is missing)")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def last_checkpoint(folder: Path) -> Path | None:
    """Where an unfinished run goes on."""
    path = folder / "checkpoints" / "last.ckpt"
    return path if path.exists() else None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or not a checkpoint.
    """
    import torch

    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {path} cannot be read ({reason}): delete it, or give another") from error
    return dict(checkpoint)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`, whole or not at all."""
    write_atomically(folder / "results.json", json.dumps(results, indent=1))


def read_results(folder: Path) -> dict[str, Any]:
    """What a finished run measured."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def spawn(function: Callable[..., object], ranks: int, *arguments: Any) -> None:
    """Run `function(*arguments)` in `ranks` processes that find each other as Lightning's DDP does.

    Lightning's own launcher starts the command line again, which in a multirun would start the sweep again.
    """
    from torch.multiprocessing import ProcessRaisedException, start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        start_processes(_rank, (function, ranks, port, arguments), nprocs=ranks, start_method="spawn")
    except ProcessRaisedException as error:
        # The last line of the rank's traceback says what went wrong, a user's mistake or ours.
        name, _, message = error.msg.strip().splitlines()[-1].partition(": ")
        kind = getattr(builtins, name, RuntimeError)
        raise kind(f"{message} (rank {error.error_index} of {ranks})") from error


def _rank(rank: int, function: Callable[..., object], ranks: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    function(*arguments)


def _flat(config: Any) -> dict[str, Any]:
    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {
            key: value
            for name in node
            for key, value in walk(f"{prefix}{'.' * bool(prefix)}{name}", node[name]).items()
        }

    return walk("", OmegaConf.to_container(config))
