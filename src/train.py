"""Train an embedding, score it every epoch, write `results.json`: `python -m src.train --help`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.running import cli

# Torch and Lightning take seconds to import: what needs them imports them inside, so that --help answers at once.


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@cli.telling_mistakes
def main(config: DictConfig) -> float:
    """One run of the composed config; returns the monitored score of its last epoch, which a sweeper can maximise."""
    from src import settings

    if "sweep" in config:
        raise ValueError(f"sweep={HydraConfig.get().runtime.choices['sweep']} is a list of runs: add -m")
    settings.check(cli.settled(config))
    OmegaConf.resolve(config)

    from src.backbones.captured import check_capturing
    from src.running import checkpoints, ranks, runs
    from src.running.hardware import count_ranks, select_accelerator, select_precision

    launched = HydraConfig.get()
    folder = Path(launched.runtime.output_dir)
    choices = {group: choice for group, choice in launched.runtime.choices.items() if not group.startswith("hydra")}
    config.trainer.accelerator = select_accelerator(config.trainer.accelerator, scores=True)
    begun = runs.begun_with(folder)
    if begun and config.trainer.precision == "auto":  # it may go on where another one would be chosen
        config.trainer.precision = begun.trainer.precision
    config.trainer.precision = select_precision(config.trainer.precision, config.trainer.accelerator)
    if config.trainer.sync_batchnorm == "auto":
        config.trainer.sync_batchnorm = config.trainer.accelerator == "gpu"  # torch has none for CPUs
    count = count_ranks(config.trainer.accelerator, config.trainer.devices)
    if count * config.trainer.num_nodes > 1 and "strategy" not in config.trainer:
        raise ValueError(f"trainer.devices={config.trainer.devices}: several ranks share what they see by trainer=ddp")
    if config.graph:
        ddp, accumulated = "strategy" in config.trainer, config.trainer.get("accumulate_grad_batches", 1)
        check_capturing(config.trainer.accelerator, ddp, accumulated, config.microbatch, config.compile)
    cluster = ranks.find_cluster(count, config.trainer.num_nodes)
    if cluster and not any(override.startswith("run_dir=") for override in launched.overrides.task):
        raise ValueError("run_dir: give all processes of the run the same one, run_dir=FOLDER")
    if cluster and cluster.global_rank() > 0:  # rank 0 keeps the folder
        return train(config, folder, choices, checkpoints.find_last(folder, config.trainer.max_epochs), cluster)
    with runs.claimed(folder):
        last = runs.begin(folder, config, launched.overrides.task)
        with runs.saying_how_to_go_on(folder, launched.overrides.task):
            if count == 1 or cluster:
                return train(config, folder, choices, last, cluster)
            ranks.spawn(train, count, config, folder, choices, last)
            results = runs.read_results(folder)
            return float(results["last"][results["monitor"]])


def train(config: DictConfig, folder: Path, choices: dict[str, Any], last: Path | None, cluster: Any = None) -> float:
    """Assemble, start, score the untrained network and fit, collect, write; on every rank, the last epoch's score.

    From the checkpoint `last` on, where there is one.
    """
    import pytorch_lightning as pl

    from src.assemble import assemble, make_logger, make_trainer
    from src.callbacks.history import History
    from src.callbacks.pictures import Pictures
    from src.module import find_callback
    from src.reporting.record import announce, collect, summary
    from src.running import hardware, runs
    from src.running.loggers import finishing

    history = History()
    hardware.settle()
    pl.seed_everything(config.seed, verbose=False)
    facts = hardware.describe_hardware(config.trainer.accelerator, config.trainer.devices, config.trainer.num_nodes)
    datamodule, module, evaluation = assemble(config, int(facts["ranks"]), filled=last is not None)
    settings: Any = OmegaConf.to_container(config)

    with finishing(make_logger(config, folder, module)) as logger:
        trainer = make_trainer(config, folder, module, evaluation, history, logger, cluster)
        if trainer.is_global_zero:
            print(announce(settings, choices, datamodule, module, facts, last), flush=True)

        if last is None:
            trainer.validate(module, datamodule, verbose=False)
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
        best = history.best(evaluation.monitor)  # the epoch that best.ckpt holds
        if not evaluation.is_complete(history.rows[-1]):
            trainer.validate(module, datamodule, verbose=False)

        pictures = find_callback(trainer, Pictures)
        results = collect(settings, choices, datamodule, module, evaluation, history, pictures, facts) | {"best": best}
        if trainer.is_global_zero:
            history.draw(folder)
            runs.write_results(folder, results)
    if trainer.is_global_zero:
        print(summary(results))
        print(folder, flush=True)
    return history.rows[-1][evaluation.monitor]


if __name__ == "__main__":
    if {*cli.MULTIRUN, "hydra.mode=MULTIRUN"} & set(sys.argv):
        from src.sweeping import plugins

        plugins.register()
    cli.run(main)
