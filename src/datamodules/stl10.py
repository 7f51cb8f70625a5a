"""STL-10 (Coates et al., 2011): 5,000 labelled, 100,000 unlabelled and 8,000 test images of 96x96 pixels."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from src.datamodules.base import StoreDataModule
from src.datamodules.published import unpack
from src.datamodules.store import write_split
from src.hints import Checksum, Count, Text
from src.running.download import download

PARTS = {"train": ("train",), "train+unlabeled": ("train", "unlabeled")}


class STL10(StoreDataModule):
    """Trains on the labelled images alone, or on the unlabelled too; the gallery is the labelled ones either way.

    Args:
        root: folder with `stl10_binary/` or its archive; downloaded into it otherwise.
        url, checksum: of the archive.
        split: `train`, 5,000 images, or `train+unlabeled`, 105,000.
        counts: images to expect in the parts train, unlabeled and test.
    """

    side = 96

    def __init__(
        self,
        *,
        root: Text,
        url: Text,
        checksum: Checksum,
        split: Literal["train", "train+unlabeled"],
        counts: Mapping[str, Count],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.url, self.checksum, self.split, self.counts = (
            Path(root).expanduser(),
            url,
            checksum,
            split,
            counts,
        )
        self.path = self.path.with_name(f"{self.name}-{split}")

    def build(self, folder: Path) -> dict[str, Any]:
        binary = self.root / "stl10_binary"
        archive = self.root / self.url.rsplit("/", 1)[-1]
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{archive.name}.lock"):  # both splits come of it
            if not (binary / "train_X.bin").is_file():
                try:
                    download(self.url, archive, self.checksum)
                except OSError as error:
                    raise OSError(f"{error}; or put the archive, or what is in it, into {self.root}") from error
                unpack(archive, self.root)
        for split, parts in (("train", PARTS[self.split]), ("test", ("test",))):
            images = [self._images(binary, part) for part in parts]
            labels = [self._labels(binary, part) for part in parts]
            write_split(folder, split, zip(chain(*images), chain(*labels), strict=True))
        classes = (binary / "class_names.txt").read_text().split()
        return {"classes": classes, "source": self.url, "checksum": self.checksum}

    def _images(self, binary: Path, part: str) -> np.ndarray:
        """`(N, 96, 96, 3)`, mapped from disk; the file has planes, and columns before rows."""
        path = binary / f"{part}_X.bin"
        flat = np.memmap(path, dtype=np.uint8, mode="r")
        if len(flat) != self.counts[part] * 96 * 96 * 3:
            raise OSError(f"{path} has {len(flat):,} bytes, not {self.counts[part]:,} images of 27,648")
        return flat.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)

    def _labels(self, binary: Path, part: str) -> np.ndarray:
        if part == "unlabeled":
            return np.full(self.counts[part], -1, dtype=np.int64)
        labels = np.fromfile(binary / f"{part}_y.bin", dtype=np.uint8).astype(np.int64) - 1
        if len(labels) != self.counts[part]:
            raise OSError(f"{part}_y.bin has {len(labels):,} labels, not {self.counts[part]:,}")
        return labels
