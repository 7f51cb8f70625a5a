"""Build a dataset's store ahead of training: `python -m src.prepare dataset=NAME`."""

import hydra
from omegaconf import DictConfig

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
def main(config: DictConfig) -> None:
    """Download or read the images, decode them into the store, and say what is in it."""
    from hydra.utils import instantiate

    datamodule = instantiate(config.dataset, _partial_=True)(augmentation=None)
    datamodule.prepare_data()
    datamodule.setup()
    store = datamodule.store
    print(f"{config.dataset.name} in {datamodule.path}, from {store.meta['source']}")
    for name, split in store.splits.items():
        count, height, width, _ = split.images.shape
        labelled = split.labels[split.labels >= 0]
        sizes = labelled.unique(return_counts=True)[1]
        spread = f"{len(sizes)} classes of {sizes.min()} to {sizes.max()} images" if len(sizes) else "no classes"
        bare = f", {count - len(labelled):,} without a label" if len(labelled) < count else ""
        print(f"{name:6} {count:8,} images of {height}x{width}, {spread}{bare}")
    if left_out := store.meta.get("left_out"):
        print(f"left out: {len(left_out)} files that can't be decoded, first {left_out[0]}")


if __name__ == "__main__":
    cli.run(main)
