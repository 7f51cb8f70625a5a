"""A user's own folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.datamodules.base import StoreDataModule
from src.datamodules.images import DECODER, decode_split, find_images, is_hidden
from src.datamodules.store import digest_of
from src.hints import Pixels, Resample, Share, Text

SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")  # which no class is called
Entries = list[tuple[Path, str | None]]  # a file and its class, None where it has no label


class Folder(StoreDataModule):
    """`train/<class>/*` and `test/<class>/*`, or `<class>/*` with a rule that splits classes or images.

    `train` and `test` may be written in capitals; what lies beside them is not read. Training images directly in
    `train/` have no label. The store is built again when a file was added, removed or changed, or an option that
    shapes it.

    Args:
        root: the folder.
        split: `auto` takes `train/` and `test/` where they are and otherwise splits by `classes`: the first in
            alphabetical order train, the others test; `random` splits the images of every class.
        test_fraction: share of the classes, or images, to test on, above 0 and below 1.
        size: side of the stored images; the aspect ratio is ignored.
        resample: the filter they are resized by: `bilinear`, `bicubic` or `lanczos`.
        skip_broken: leave out, and name, files that can't be decoded, instead of stopping.
    """

    def __init__(
        self,
        *,
        root: Text,
        split: Literal["auto", "classes", "random"],
        test_fraction: Share,
        size: Pixels,
        resample: Resample,
        skip_broken: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser().resolve()
        if not self.root.is_dir():
            raise FileNotFoundError(f"dataset.root={self.root}: there is no such folder")
        self.split, self.test_fraction = split, test_fraction
        self.size, self.resample, self.skip_broken = size, resample, skip_broken
        self.entries = self._split()
        listing = {
            name: [(str(path), *_state(path), label) for path, label in entries]
            for name, entries in self.entries.items()
        }
        digest = digest_of(DECODER, listing, size, resample, skip_broken)
        self.path = self.path.with_name(f"{self.name}-{self.root.name}-{digest}")

    def build(self, folder: Path) -> dict[str, Any]:
        classes = sorted({label for entries in self.entries.values() for _, label in entries if label is not None})
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(classes)} | {None: -1}
        broken: list[str] = []
        for split, entries in self.entries.items():
            paths, labels = [path for path, _ in entries], [numbers[label] for _, label in entries]
            broken += decode_split(folder, split, paths, labels, self.size, self.resample, self.skip_broken)
        for line in broken:
            print(f"left out: {line}")
        return {"classes": classes, "source": str(self.root), "left_out": broken}

    def _split(self) -> dict[str, Entries]:
        folders = sorted(child for child in self.root.iterdir() if child.is_dir() and not is_hidden(child.name))
        splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
        if self.split == "auto" and splits:
            entries = {name: _labelled(self._only(name, splits)) for name in ("train", "test")}
        elif splits and splits == folders:
            raise ValueError(
                f"dataset.root={self.root}: {_names(splits)}: named like splits of the images, not like classes: "
                "make train/ and test/ and set dataset.split=auto, or set dataset.root to a folder of class folders"
            )
        else:
            entries = self._split_by_rule(_labelled(self.root))
        for name, found in entries.items():
            if not found:
                raise ValueError(f"dataset.root={self.root}: no images to {name} on")
        return entries

    def _only(self, name: str, splits: Sequence[Path]) -> Path:
        found = [folder for folder in splits if folder.name.lower() == name]
        if not found:
            raise FileNotFoundError(
                f"dataset.root={self.root}: {_names(splits)}: named like a split of the images, "
                f"but there is no folder {name}: make train/ and test/, or class folders alone"
            )
        if len(found) > 1:
            raise ValueError(f"dataset.root={self.root}: {_names(found)} differ only in case: keep one {name} folder")
        return found[0]

    def _split_by_rule(self, found: Entries) -> dict[str, Entries]:
        if any(label is None for _, label in found):
            raise ValueError(
                f"dataset.root={self.root}: images lie outside of class folders; "
                "make train/ and test/, or a folder for each class"
            )
        if self.split == "random":
            test = _draw([str(label) for _, label in found], self.test_fraction)
            return {
                "train": [entry for number, entry in enumerate(found) if number not in test],
                "test": [entry for number, entry in enumerate(found) if number in test],
            }
        classes = sorted({label for _, label in found if label is not None})
        if len(classes) < 2:
            raise ValueError(f"dataset.root={self.root}: {len(classes)} class can't be split; dataset.split=random can")
        count = min(max(1, round((1 - self.test_fraction) * len(classes))), len(classes) - 1)
        train = set(classes[:count])
        return {
            "train": [entry for entry in found if entry[1] in train],
            "test": [entry for entry in found if entry[1] not in train],
        }


def _draw(labels: list[str], fraction: float) -> set[int]:
    """Positions of a fixed draw of a `fraction` of every class, rounded."""
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    members: dict[str, list[int]] = {}
    for position in order:
        members.setdefault(labels[position], []).append(position)
    return {position for group in members.values() for position in group[: round(fraction * len(group))]}


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change, by which a changed file is known; a link to nothing has its own."""
    found = path.stat() if path.exists() else path.lstat()
    return found.st_size, found.st_mtime_ns


def _labelled(folder: Path) -> Entries:
    """The images below `folder`, each with the name of the first folder on its way, or None directly in it."""
    paths = [(path, path.relative_to(folder).parts) for path in find_images(folder)]
    found = [(path, parts[0] if len(parts) > 1 else None) for path, parts in paths]
    empty = {child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name)}
    empty -= {label for _, label in found if label is not None}
    if empty:
        raise ValueError(f"{folder}: the class folders {', '.join(sorted(empty)[:5])} hold no images")
    return found
