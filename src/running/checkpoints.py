"""Checkpoints: written whole beside their place and renamed, the one before kept, and read without running anything.

A run folder has `checkpoints/last.ckpt`, `previous.ckpt` (the one before) and `best.ckpt`; that of an exported run has
`model.safetensors` in their place.
"""

import os
from pathlib import Path
from typing import Any

NAMES = ("last", "previous")
EXPORTED = "model.safetensors"


def path_of(folder: Path, name: str) -> Path:
    """Of the checkpoint `name`, `last`, `previous` or `best`, of the run in `folder`."""
    return folder / "checkpoints" / f"{name}.ckpt"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in `folder` can go on from somewhere."""
    return any(path_of(folder, name).exists() for name in NAMES)


def find_last(folder: Path, max_epochs: int) -> Path | None:
    """Where an unfinished run goes on: the last checkpoint, or where it is damaged the one before.

    Raises:
        ValueError: all that are there are damaged, or have more than `max_epochs`.
    """
    damage: ValueError | None = None
    for path in (path_of(folder, name) for name in NAMES):
        if path.exists():
            try:
                checkpoint = load(path)
                epochs = checkpoint["epoch"] + (checkpoint["global_step"] > 0)  # with the one that is not whole
            except ValueError as error:
                print(error, flush=True)
                damage = error
                continue
            if epochs > max_epochs:
                raise ValueError(
                    f"trainer.max_epochs={max_epochs}: the run in {folder} has come to epoch {epochs} already"
                )
            return path
    if damage:
        raise damage
    return None


def describe(checkpoint: dict[str, Any]) -> str:
    """Which epoch a checkpoint is of, 0 before any, and of how many of its batches where it is not yet whole."""
    if not checkpoint["global_step"]:
        return "epoch 0, untrained"
    loops = checkpoint["loops"]["fit_loop"]
    whole = loops["epoch_progress"]["current"]["processed"] > checkpoint["epoch"]
    batches = loops["epoch_loop.batch_progress"]["current"]["processed"]
    return f"epoch {checkpoint['epoch'] + 1}" + ("" if whole else f", which is not whole yet, after {batches} batches")


def load(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or not a checkpoint.
    """
    import torch

    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = dict(torch.load(path, map_location="cpu", weights_only=True))
        int(checkpoint["epoch"]), int(checkpoint["global_step"])
        dict(checkpoint["state_dict"])
        return checkpoint
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises what it likes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"the checkpoint {path} cannot be read ({reason}): delete it, or give another") from error


def read_weights(folder: Path, name: str) -> tuple[dict[str, Any], tuple[str, str]]:
    """The weights of the run in `folder` by their names: of its checkpoint `name`, or all that it was exported with.

    Returns:
        The weights; which they are, `last`, `best` or `exported`, and of which epoch, in words.

    Raises:
        FileNotFoundError, ValueError: there are none, or they are damaged.
    """
    exported = folder / EXPORTED
    if not exported.exists():
        checkpoint = load(path_of(folder, name))
        return checkpoint["state_dict"], (name, describe(checkpoint))

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(exported), ("exported", "an epoch that its card names")
    except SafetensorError as error:
        raise ValueError(f"{exported} is damaged: {error}") from error


def part_of(weights: dict[str, Any], part: str) -> dict[str, Any]:
    """Those of `backbone` or `head` by their names in it: of the average, or the whitening, where that is scored."""
    places = [*(["whitening."] if part == "head" else []), f"average.{part}.", f"{part}."]
    prefix = next((place for place in places if any(name.startswith(place) for name in weights)), places[-1])
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def fill(module: Any, checkpoint: dict[str, Any]) -> None:
    """Load the weights of a checkpoint into `module`.

    Raises:
        ValueError: it is of another network.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the checkpoint is of another network: {' '.join(str(error).split())[:300]}") from error


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write `checkpoint` to `path`, whole or not at all.

    Raises:
        OSError: the disk is full, or the like; what was there is still whole.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as error:  # as torch's writer has it
        raise OSError(f"the checkpoint {path} could not be written: {str(error).splitlines()[0]}") from error
    finally:
        partial.unlink(missing_ok=True)
