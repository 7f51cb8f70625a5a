"""Weights & Biases without surprises: online when logged in and reachable, otherwise offline, never a prompt."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from src.hints import Text
from src.running.runs import write_atomically

# W&B's own package is imported where it is used: it takes most of a second, which the other loggers need not wait for.
LONGEST = 128  # characters that W&B takes for a name
PATIENCE = 20  # seconds to wait for the server before going offline


def _reachable() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, timeout=PATIENCE)
    except wandb.Error as error:
        print(f"W&B: {str(error).splitlines()[0]}")
        return False


def csv_logger(save_dir: Path) -> CSVLogger:
    """`metrics.csv` in `save_dir`, written as it comes; a run that goes on adds to it."""
    logger = CSVLogger(save_dir, name="", version="", flush_logs_every_n_steps=1)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        file, aside = save_dir / "metrics.csv", save_dir / ".metrics.csv"
        if file.exists():
            os.replace(file, aside)  # Lightning would delete it
        writer = logger.experiment
        if aside.exists():
            writer.metrics_keys = aside.read_text().split("\n", 1)[0].split(",")
            os.replace(aside, file)
    return logger


def wandb_logger(
    save_dir: Path,
    project: Text,
    entity: Text | None,
    group: Text | None,
    name: Text | None,
    tags: Sequence[Text],
) -> WandbLogger:
    """Start a run, online or offline; the variable WANDB_MODE has the last word.

    A run that goes on does so in its own W&B run, whose id is kept in its folder as `wandb_id`.

    Args:
        save_dir: run folder, where the files of an offline run wait to be synchronised.
        project, entity, tags: as in `wandb.init`.
        group: a folder, whose name the group has.
        name: None: in a group that of the run's folder, otherwise one of W&B's.
    """
    import wandb

    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return WandbLogger(save_dir=str(save_dir), project=project)
    kept = save_dir / "wandb_id"
    if not kept.exists():
        write_atomically(kept, secrets.token_hex(4))
    options: dict[str, Any] = {"dir": str(save_dir), "id": kept.read_text().strip(), "resume": "allow"}
    if group:
        options |= {"group": Path(group).name[:LONGEST], "name": name or save_dir.name[:LONGEST]}
    else:
        options["name"] = name
    options |= {"project": project, "entity": entity, "tags": list(tags)}
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
    return WandbLogger(experiment=run, save_dir=str(save_dir))


@contextmanager
def finishing(logger: Logger | None) -> Iterator[Logger | None]:
    """Close the run's logger at the end, so that the next run of the process starts its own."""
    failed = True
    try:
        yield logger
        failed = False
    finally:
        if isinstance(logger, WandbLogger):
            import wandb

            wandb.finish(exit_code=int(failed))
        elif logger:
            logger.finalize("failed" if failed else "success")
