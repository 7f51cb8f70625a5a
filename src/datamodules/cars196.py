"""Cars196 (Krause et al., 2013): 16,185 photographs of 196 car models."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from src.datamodules.images import find_images
from src.datamodules.published import Entry, PublishedDataModule


class Cars196(PublishedDataModule):
    """The first 98 models, 8,054 images, train; the last 98, 8,131, test.

    The original hosting is gone. Three layouts circulate, all read: one folder of images with one file of annotations,
    training and test folders with the development kit, and a folder for each class.
    """

    layout = (
        "car_ims/ with cars_annos.mat; or cars_train/ and cars_test/ with devkit/; "
        "or a folder for each of the 196 classes, below train/ and test/ or not"
    )

    def read(self) -> tuple[list[str], list[Entry]] | None:
        annotations = self.root / "cars_annos.mat"
        if annotations.is_file():
            table = read_table(annotations)
            found = [(self.root / str(row["relative_im_path"]), int(row["class"]) - 1) for row in table["annotations"]]
            return [str(name) for name in table["class_names"]], found
        for kit in (self.root / "devkit", self.root / "car_devkit" / "devkit", self.root):
            if (kit / "cars_train_annos.mat").is_file():
                return self._development_kit(kit)
        return self._class_folders()

    def _development_kit(self, kit: Path) -> tuple[list[str], list[Entry]]:
        labelled = next(
            (path for path in (kit, self.root) if (path / "cars_test_annos_withlabels.mat").is_file()), None
        )
        if labelled is None:
            raise FileNotFoundError(f"cars_test_annos_withlabels.mat is missing in {kit}: the test labels are in it")
        entries: list[Entry] = []
        for split, path in (
            ("train", kit / "cars_train_annos.mat"),
            ("test", labelled / "cars_test_annos_withlabels.mat"),
        ):
            images = self.root / f"cars_{split}"
            nested = images / f"cars_{split}"  # as some archives unpack
            folder = nested if nested.is_dir() else images
            table = read_table(path)["annotations"]
            entries += [(folder / str(row["fname"]), int(row["class"]) - 1) for row in table]
        names = read_table(kit / "cars_meta.mat")["class_names"]
        return [str(name) for name in names], entries

    def _class_folders(self) -> tuple[list[str], list[Entry]] | None:
        # The classes are numbered in the order of their names.
        paths = find_images(self.root) if self.root.is_dir() else []
        classes = sorted({path.parent.name for path in paths})
        if len(classes) <= self.train_classes:
            return None
        numbers = {name: number for number, name in enumerate(classes)}
        return classes, [(path, numbers[path.parent.name]) for path in paths]


def read_table(path: Path) -> dict[str, Any]:
    """What a MATLAB file holds, by name, read in a process of its own: scipy's reader can crash on a damaged one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(pool.submit(loadmat, path, squeeze_me=True).result())
