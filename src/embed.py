"""Embed images by a finished run into an index: `python -m src.embed run=PATH images=FOLDER out=INDEX`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="embed")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Embed what an index at `out` does not have yet."""
    from src import settings

    settings.check(cli.settled(config), settings.EMBED)

    from src.indexing.formats import check, write
    from src.indexing.sources import find_source

    check(config.format)
    source = find_source(config.images)

    import time

    from src.embedder import load
    from src.indexing.building import build
    from src.indexing.index import Index
    from src.indexing.progress import showing
    from src.running import hardware

    hardware.settle()
    embedder = load(config.run, config.checkpoint, config.space, config.accelerator, config.precision)
    out, start = Path(config.out).expanduser(), time.monotonic()
    with showing("images", source.count()) as report:
        counts = build(embedder, source, out, report)
    index = Index(out)
    for reason in index.left_out():
        print(f"left out: {reason}")
    speed = counts.embedded / (time.monotonic() - start)
    print(
        f"{len(index):,} images of {source.place}: {counts.embedded:,} embedded now ({speed:.0f} images/s), "
        f"{counts.known:,} known before, {counts.left_out:,} left out; {index.meta['dim']} dimensions, {config.space}"
    )
    if config.format != "npy":
        print(write(index, config.format))
    print(out)


if __name__ == "__main__":
    cli.run(main)
