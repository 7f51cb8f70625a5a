"""Weights & Biases without surprises: online when logged in and reachable, otherwise offline, never a prompt."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.running.runs import last_checkpoint

PATIENCE = 20  # seconds to wait for the server before going offline


def _reachable() -> bool:
    try:
        return wandb.login(prompt=False, timeout=PATIENCE)
    except wandb.Error as error:
        print(f"W&B: {str(error).splitlines()[0]}")
        return False


def wandb_logger(save_dir: str, project: str, entity: str | None, name: str | None, tags: list[str]) -> WandbLogger:
    """Start a run of its own, online or offline; the variable WANDB_MODE has the last word.

    Args:
        save_dir: run folder, where the files of an offline run wait to be synchronised.
        project, entity, name, tags: as in `wandb.init`.
    """
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return WandbLogger(save_dir=save_dir, project=project)
    options: dict[str, Any] = {"dir": save_dir, "project": project, "entity": entity, "name": name, "tags": tags}
    settings = wandb.Settings(init_timeout=PATIENCE, console="off", silent=True)
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not _reachable():
        mode = "offline"
    try:
        run = wandb.init(mode=mode, settings=settings, **options)  # type: ignore[arg-type]
    except wandb.Error as error:
        print(f"W&B: {str(error).splitlines()[0]}")
        mode = "offline"
        run = wandb.init(mode="offline", settings=settings, **options)
    if mode == "offline":
        print(f"W&B is offline; to upload this run: wandb sync {Path(run.dir).parent}")
    return WandbLogger(experiment=run, save_dir=save_dir)


@contextmanager
def finishing(logger: Logger | None, folder: Path) -> Iterator[Logger | None]:
    """Close the run's logger at the end, so that the next run of the process starts its own.

    Where the run breaks off and has a checkpoint in `folder`, says how it goes on.
    """
    failed = True
    try:
        yield logger
        failed = False
    finally:
        if isinstance(logger, WandbLogger):
            wandb.finish(exit_code=int(failed))
        elif logger:
            logger.finalize("failed" if failed else "success")
        if failed and last_checkpoint(folder) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"Not finished; the same command with run_dir={folder} goes on from the last epoch.", flush=True)
