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
    """Assemble, start, score the untrained network and fit, collect, write; on every rank, the last epoch's score."""
    import pytorch_lightning as pl

    from src.assemble import assemble, make_logger, make_trainer
    from src.callbacks.history import History
    from src.reporting.record import announce, collect, summary
    from src.running import hardware
    from src.running.loggers import finishing

    started = time.perf_counter()
    hardware.settle()
    pl.seed_everything(config.seed, verbose=False)
    last = runs.last_checkpoint(folder)
    if last:
        runs.load_checkpoint(last)
    facts = hardware.describe_hardware(config.trainer.accelerator, config.trainer.devices)
    datamodule, module, evaluation = assemble(config, int(facts["ranks"]))
    settings: Any = OmegaConf.to_container(config)

    history, monitor = History(), config.protocol.monitor
    with finishing(make_logger(config, module), folder) as logger:
        trainer = make_trainer(config, folder, module, [evaluation, history], logger)
        if trainer.is_global_zero:
            print(announce(settings, choices, datamodule, module, facts, last), flush=True)

        if last is None:
            trainer.validate(module, datamodule, verbose=False)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        best = history.best(monitor)  # the epoch that best.ckpt holds
        if monitor not in history.rows[-1]:
            trainer.validate(module, datamodule, verbose=False)

        results = collect(settings, choices, datamodule, module, history, facts)
        results |= {"best": best, "resumed": last is not None, "wall_time_s": round(time.perf_counter() - started, 1)}
        if trainer.is_global_zero:
            runs.write_results(folder, results)
    if trainer.is_global_zero:
        print(summary(results))
        print(folder, flush=True)
    return history.rows[-1][monitor]


if __name__ == "__main__":
    cli.run(main)
