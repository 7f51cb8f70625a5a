"""Build a dataset's store ahead of training: `python -m src.prepare dataset=NAME`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported


import hydra
from omegaconf import DictConfig

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Download or read the images, decode them into the store, and say what is in it."""
    from src import settings

    settings.check(cli.settled(config))

    from hydra.utils import instantiate

    from src.datamodules.store import first_copies

    datamodule = instantiate(config.dataset, _partial_=True)(augmentation=None)
    datamodule.prepare_data()
    datamodule.setup()
    store = datamodule.store
    print(f"{config.dataset.name} in {datamodule.path}, from {store.meta.get('source', 'an unknown source')}")
    first = dict(zip(store.splits, first_copies(*(split.images for split in store.splits.values())), strict=True))
    for name, split in store.splits.items():
        count, height, width, _ = split.images.shape
        labelled = split.labels[split.labels >= 0]
        sizes = labelled.unique(return_counts=True)[1]
        spread = f"{len(sizes)} classes of {sizes.min()} to {sizes.max()} images" if len(sizes) else "no classes"
        bare = f", {count - len(labelled):,} without a label" if len(labelled) < count else ""
        copies = count - len(first[name].unique())
        same = f", {copies:,} of them copies of others" if copies else ""
        print(f"{name:6} {count:8,} images of {height}x{width}, {spread}{bare}{same}")
    shared = (first["test"] < len(first["train"])).nonzero().flatten().tolist()
    if shared:
        print(
            f"{len(shared):,} test images are also in the training set, "
            f"first test row {shared[0]}, training row {first['test'][shared[0]]}"
        )
    left_out = store.meta.get("left_out")
    if isinstance(left_out, list) and left_out:
        print(f"left out: {len(left_out)} files that can't be decoded, first {left_out[0]}")


if __name__ == "__main__":
    cli.run(main)
