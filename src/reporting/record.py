"""What a run says of itself: its first line, its `results.json`, and the scores that it prints at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.callbacks.evaluation import Evaluation
from src.callbacks.history import History
from src.callbacks.pictures import Pictures
from src.datamodules.base import StoreDataModule
from src.module import EmbeddingModule
from src.reporting.results import chosen_on
from src.running.hardware import describe_versions

Config = Mapping[str, Any]  # resolved, in plain dicts


def announce(
    config: Config,
    choices: Mapping[str, Any],
    datamodule: StoreDataModule,
    module: EmbeddingModule,
    facts: Mapping[str, Any],
    last: Path | None,
) -> str:
    """Data, network, hardware, and the checkpoint that the run goes on from, in one line."""
    network = (module.backbone, module.head, module.method)  # averages of it aside
    parameters = sum(parameter.numel() for part in network for parameter in part.parameters())
    held_out = datamodule.validation_labels
    return (
        f"{config['dataset']['name']}: {len(datamodule.train_labels):,} training"
        + (f", {len(held_out):,} held-out" if held_out is not None else "")
        + f" and {len(datamodule.query_labels):,} test images; {choices['backbone']}, {parameters:,} parameters; "
        f"{config['trainer']['precision']} on {facts['ranks']} x {facts.get('gpu', facts['cpu'])}"
        + ("; training labels are used" if module.method.supervised else "")
        + (f"; going on from {last}" if last else "")
    )


def collect(
    config: Config,
    choices: Mapping[str, Any],
    datamodule: StoreDataModule,
    module: EmbeddingModule,
    evaluation: Evaluation,
    history: History,
    pictures: Pictures | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What `results.json` says of a run whose training has ended, but for its best epoch."""
    gallery = datamodule.gallery_labels
    return {
        "last": history.rows[-1],
        "untrained": history.rows[0],
        "monitor": evaluation.monitor,
        "intervals": evaluation.intervals,
        "histograms": evaluation.histograms,
        "pictures": pictures.pictures if pictures else [],
        "protocol": {
            "name": choices["protocol"],
            "preset": choices.get("experiment"),
            "space": config["protocol"]["space"],
            "metrics": config["protocol"]["metrics"],
            "final": config["protocol"]["final"],
            "gallery": f"{len(gallery)} training images" if gallery is not None else None,
            "query": f"{len(datamodule.query_labels)} test images",
            "validation": _held_out(datamodule),
            "labels_used": module.method.supervised,
            "method": config["method"],
        },
        "choices": dict(choices),
        "seed": config["seed"],
        "images_per_s": history.median("train/images_per_s"),
        "wall_time_s": round(sum(leg["seconds"] for leg in history.legs), 1),
        "legs": history.legs,
        "hardware": dict(facts),
        "versions": describe_versions(),
        "history": history.rows,
        "config": dict(config),
    }


def _held_out(datamodule: StoreDataModule) -> str | None:
    labels = datamodule.validation_labels
    if labels is None:
        return None
    if datamodule.unseen:
        return f"{len(labels.unique())} of the training classes, {len(labels)} images"
    return f"{len(labels)} of the training images"


def said(interval: Sequence[float] | None) -> str:
    """`1.23 to 4.56`; empty where there is none."""
    return "{:.2f} to {:.2f}".format(*interval) if interval else ""


def summary(results: Mapping[str, Any]) -> str:
    """The scores before and after, a line each, and how sure the last are."""
    names = [name for name in results["last"] if name != "epoch" and name in results["untrained"]]
    width = max(24, *map(len, names))
    lines = [f"{'':{width}}untrained     best     last  95% of resampled queries"]
    rows = [results[name] or {} for name in ("untrained", "best", "last")]
    for name in names:
        numbers = "".join(f"{row[name]:9.2f}" if name in row else f"{'-':>9}" for row in rows)
        lines.append(f"{name:{width}}{numbers}  {said(results['intervals'].get(name))}".rstrip())
    best = f"epoch {results['best']['epoch']}" if results["best"] else "none, no epoch was scored in training;"
    lines.append(
        f"last: epoch {results['last']['epoch']}; best: {best} of {results['monitor']} "
        f"({results['protocol']['space']}), chosen on {chosen_on(results['protocol'])}; "
        f"{results['images_per_s']:.0f} images/s, "
        f"{results['wall_time_s']:.0f} s" + ("; training labels used" if results["protocol"]["labels_used"] else "")
    )
    return "\n".join(lines)
