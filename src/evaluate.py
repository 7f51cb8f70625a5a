"""Score a finished run again: `python -m src.evaluate run=PATH`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Every metric of the run's protocol, of the checkpoint chosen, beside what the run itself wrote."""
    from src import settings
    from src.running import runs

    settings.check(cli.settled(config), settings.EVALUATE)
    folder, which = runs.locate(Path(config.run), config.checkpoint)
    saved = runs.load_config(folder)
    saved.protocol = OmegaConf.merge(saved.protocol, config.protocol)
    saved.dataset.gallery, saved.dataset.cache_dir = saved.protocol.gallery, config.cache_dir
    settings.check(cli.settled(saved))

    import pytorch_lightning as pl

    from src.assemble import assemble
    from src.reporting.record import said
    from src.running import checkpoints, hardware

    hardware.settle()
    accelerator = hardware.select_accelerator(config.accelerator, scores=True)
    checkpoint = checkpoints.load(checkpoints.path_of(folder, which))
    finished = (folder / "results.json").exists()  # the whitening of another may be of an epoch before
    datamodule, module, evaluation = assemble(saved, ranks=1, filled=True, fits=not finished)
    checkpoints.fill(module, checkpoint)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=hardware.recall_precision(saved.trainer.precision, accelerator),  # type: ignore[arg-type]
        logger=False,
        callbacks=[evaluation],
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.validate(module, datamodule, verbose=False)
    written = (runs.read_results(folder).get(which) or {}) if finished else {}
    print(f"{folder}, {which} checkpoint of {checkpoints.describe(checkpoint)}; scores, and 95% of resampled queries")
    width = max(24, *map(len, trainer.callback_metrics))
    for name, value in trainer.callback_metrics.items():
        note = f"  {said(evaluation.intervals.get(name)):16}"
        note += f"  results.json: {written[name]:.4f}" if name in written else ""
        print(f"{name:{width}}{float(value):9.4f}{note.rstrip()}")


if __name__ == "__main__":
    cli.run(main)
