"""Train an embedding, score it every epoch, write `results.json`: `python -m src.train --help`."""

import os
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.running import cli, runs

# Torch and Lightning take seconds to import: what needs them imports them inside, so that --help answers at once.


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(config: DictConfig) -> float:
    """One run of the composed config; returns the monitored score of its last epoch, which a sweeper can maximise."""
    from src.running.hardware import count_ranks, select_accelerator, select_precision

    launched = HydraConfig.get()
    folder = Path(launched.runtime.output_dir)
    choices = {group: choice for group, choice in launched.runtime.choices.items() if not group.startswith("hydra")}
    OmegaConf.resolve(config)
    config.trainer.accelerator = select_accelerator(config.trainer.accelerator)
    config.trainer.precision = select_precision(config.trainer.precision, config.trainer.accelerator)
    if config.trainer.sync_batchnorm == "auto":
        config.trainer.sync_batchnorm = config.trainer.accelerator == "gpu"  # torch has none for CPUs
    ranks = count_ranks(config.trainer.accelerator, config.trainer.devices)
    runs.begin(folder, config)
    if ranks > 1 and "LOCAL_RANK" not in os.environ:
        runs.spawn(train, ranks, config, folder, choices)
        return float(runs.read_results(folder)["last"][config.protocol.monitor])
    return train(config, folder, choices)


def train(config: DictConfig, folder: Path, choices: dict[str, Any]) -> float:
    """Score the untrained network, fit, write the results; on every rank, returns the last epoch's score."""
    import pytorch_lightning as pl
    from hydra.utils import instantiate
    from pytorch_lightning.utilities import rank_zero_only

    from src.assemble import assemble
    from src.callbacks.evaluation import Evaluation
    from src.callbacks.history import History
    from src.callbacks.refresh import Refresh
    from src.callbacks.steps import Steps
    from src.running import hardware
    from src.running.loggers import finish

    started = time.perf_counter()
    hardware.settle()
    pl.seed_everything(config.seed, verbose=False)
    ranks = hardware.count_ranks(config.trainer.accelerator, config.trainer.devices)
    last = runs.last_checkpoint(folder)
    if last:
        runs.load_checkpoint(last)
    datamodule, module, metrics = assemble(config, ranks)
    if not module.method.trains:
        config.trainer.max_epochs = 0
    if config.compile:
        module.backbone.compile()
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    facts = hardware.describe_hardware(config.trainer.accelerator, ranks)
    history, monitor = History(), config.protocol.monitor
    logger = instantiate(config.logger) if config.logger else None
    results = None
    try:
        trainer = instantiate(
            config.trainer,
            logger=logger or False,
            callbacks=[Refresh(config.seed), Evaluation(metrics), Steps(), history, *callbacks],
            default_root_dir=str(folder),
        )
        if trainer.is_global_zero:
            parameters = sum(parameter.numel() for parameter in module.parameters())
            print(
                f"{config.dataset.name}: {len(datamodule.train_labels):,} training and "
                f"{len(datamodule.query_labels):,} test images; {choices['backbone']}, {parameters:,} parameters; "
                f"{config.trainer.precision} on {ranks} x {facts.get('gpu', facts['cpu'])}"
                + ("; training labels are used" if module.method.supervised else "")
                + (f"; going on from {last}" if last else ""),
                flush=True,
            )
            if logger:
                logger.log_hyperparams({**plain, "labels_used": module.method.supervised})
        if last is None:
            trainer.validate(module, datamodule, verbose=False)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        gallery = datamodule.gallery_labels
        best = history.best(monitor)  # the epoch that best.ckpt holds
        if monitor not in history.rows[-1]:
            trainer.validate(module, datamodule, verbose=False)
        results = {
            "last": history.rows[-1],
            "best": best,
            "untrained": history.rows[0],
            "monitor": monitor,
            "protocol": {
                "name": choices["protocol"],
                "preset": choices.get("experiment"),
                "metrics": OmegaConf.to_container(config.protocol.metrics),
                "gallery": f"{len(gallery)} training images" if gallery is not None else None,
                "query": f"{len(datamodule.query_labels)} test images",
                "labels_used": module.method.supervised,
                "stop_gradient": config.method.get("stop_gradient"),
                "positives": config.method.get("positives"),
            },
            "choices": choices,
            "seed": config.seed,
            "images_per_s": history.median("train/images_per_s"),
            "wall_time_s": round(time.perf_counter() - started, 1),
            "resumed": last is not None,
            "hardware": facts,
            "versions": hardware.describe_versions(),
            "history": history.rows,
            "config": plain,
        }
        if trainer.is_global_zero:
            runs.write_results(folder, results)
    finally:
        finish(logger, failed=results is None)
        if results is None and runs.last_checkpoint(folder) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"Not finished; the same command with run_dir={folder} goes on from the last epoch.", flush=True)
    if trainer.is_global_zero:
        print(summary(results))
        print(folder, flush=True)
    return history.rows[-1][monitor]


def summary(results: dict[str, Any]) -> str:
    """The scores before and after, a line each."""
    rows = [
        (name, results["untrained"], results["last"], results["best"]) for name in results["last"] if name != "epoch"
    ]
    lines = [f"{'':16}untrained     last     best"]
    for name, untrained, last, best in rows:
        if name in untrained:
            lines.append(f"{name:16}{untrained[name]:9.2f}{last[name]:9.2f}{best[name]:9.2f}")
    lines.append(
        f"last: epoch {results['last']['epoch']}; best: epoch {results['best']['epoch']} of {results['monitor']}, "
        f"chosen on the test images; {results['images_per_s']:.0f} images/s, {results['wall_time_s']:.0f} s"
        + ("; training labels used" if results["protocol"]["labels_used"] else "")
    )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
