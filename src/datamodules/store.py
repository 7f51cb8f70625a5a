"""The store: a dataset decoded once, as uint8 images in `.npy` files that training maps into memory.

A store is a folder with `meta.json` and, for each of the splits `train` and `test`, `<split>_images.npy` uint8
`(N, H, W, 3)` and `<split>_labels.npy` int64 `(N,)`, class numbers or -1 for unlabelled. It is built in a folder beside
its own and renamed when complete, so a store that exists is whole.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

FORMAT = 1
SPLITS = ("train", "test")


def digest_of(*what: Any) -> str:
    """Twelve letters for the name of a store, others for whatever else its images depend on."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Split:
    """Images uint8 `(N, H, W, 3)`, mapped from disk, and labels int64 `(N,)`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Store:
    """An opened store: its splits by name, the classes' names by number, and what `meta.json` says."""

    splits: Mapping[str, Split]
    classes: list[str]
    meta: dict[str, Any]


def prepare_store(path: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """Build the store at `path` unless it is there; of several processes one builds and the others wait.

    Args:
        path: the store's folder; its parents are made.
        build: writes the splits (`write_split`) into the folder it is given and returns what `meta.json` should say of
            them: at least `classes` and `source`.

    Raises:
        OSError: no space, no permission, or no source; nothing is left behind.
    """
    if (path / "meta.json").exists():
        return
    if path.exists():
        raise FileExistsError(f"{path} exists but holds no store (meta.json is missing): move or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if (path / "meta.json").exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        partial.mkdir()
        try:
            described = build(partial)
            splits = {
                file.name.removesuffix("_images.npy"): list(np.load(file, mmap_mode="r").shape)
                for file in sorted(partial.glob("*_images.npy"))
            }
            meta = {"format": FORMAT, "splits": splits, "created": datetime.now(UTC).isoformat(timespec="seconds")}
            (partial / "meta.json").write_text(json.dumps(meta | described, indent=1))
            os.rename(partial, path)
        except OSError as error:
            raise OSError(f"the store {path} was not built and nothing is left of it: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_split(folder: Path, split: str, examples: Iterable[tuple[np.ndarray, int]]) -> None:
    """Write images, uint8 `(H, W, 3)` all alike, with their labels as one split of the store being built in `folder`.

    They are written as they come, so memory need not hold them, nor anyone know how many there will be.

    Raises:
        ValueError: an image has another shape or type.
        OSError: there are none, or the disk is full.
    """
    labels: list[int] = []
    with (folder / f"{split}_images.npy").open("wb", buffering=2**20) as file:
        for image, label in examples:
            if not labels:
                shape = image.shape
                write_header(file, "|u1", (0, *shape))
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != shape:
                raise ValueError(
                    f"split {split}: need uint8 images (H, W, 3) of one size, got {image.dtype} {image.shape}"
                )
            file.write(image.tobytes())
            labels.append(label)
        if not labels:
            raise OSError(f"the {split} split has no image")
        write_header(file, "|u1", (len(labels), *shape))
    np.save(folder / f"{split}_labels.npy", np.array(labels, dtype=np.int64))


def write_header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> int:
    """Write the header of a `.npy` file at its beginning and return its length, the same for any number of rows."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.tell()


def read_store(path: Path) -> Store:
    """Open the store at `path` without reading its images.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the store is damaged or of another version; the message says where and what to do.
        OSError: it can't be read.
    """
    if not (path / "meta.json").exists():
        raise FileNotFoundError(f"no store at {path}: run again with the dataset's source at hand to build it")
    try:
        meta = _read_meta(path / "meta.json")
        splits = {name: _read_split(path, name, meta["splits"][name], len(meta["classes"])) for name in SPLITS}
    except Exception as error:  # from a stranger's bytes json and numpy may raise anything
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | IsADirectoryError):
            raise  # not the store's fault, such as a permission
        reason = f"{error} is missing from meta.json" if isinstance(error, KeyError) else f"{error}"
        reason = (reason or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"the store {path} is damaged ({reason}): delete {path} and run again to rebuild it"
        ) from error
    return Store(splits, meta["classes"], meta)


def _read_meta(path: Path) -> dict[str, Any]:
    """What `meta.json` says, with `classes` a list of names and `splits` by name."""
    meta = json.loads(path.read_text())
    if not isinstance(meta, dict):
        raise ValueError("meta.json holds no names and values")
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
    if not isinstance(meta["classes"], list) or not all(isinstance(name, str) for name in meta["classes"]):
        raise ValueError("classes in meta.json is no list of names")
    if not isinstance(meta["splits"], dict):
        raise ValueError("splits in meta.json has no names")
    return meta


def _read_split(path: Path, name: str, shape: Any, classes: int) -> Split:
    images = np.load(path / f"{name}_images.npy", mmap_mode="c")
    labels = np.load(path / f"{name}_labels.npy")
    found = (images.dtype, images.ndim, images.shape[-1:], labels.dtype, labels.shape)
    # As text, since 20.0 == 20 and True == 1.
    if found != (np.uint8, 4, (3,), np.int64, images.shape[:1]) or repr(list(images.shape)) != repr(shape):
        given = f"images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}"
        raise ValueError(f"{name}: {given}, not uint8 {shape} and int64")
    if images.size == 0:
        raise ValueError(f"{name}: no images")
    if not -1 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}: labels {labels.min()} to {labels.max()} for {classes} classes")
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def first_copies(*parts: Tensor) -> tuple[Tensor, ...]:
    """For each image of each part, images uint8 `(N, H, W, 3)`, the first that has the same pixels: `(N,)`.

    It is a position in all the parts, counted through; the image's own if no earlier one equals it. Of images mapped
    from disk little is read where few are the same.
    """
    images = [image for part in parts for image in part.numpy()]
    lines = [_digest(image[len(image) // 2]) for image in images]
    often = Counter(lines)  # images can only be equal if their middle lines are: the others needn't be read whole
    first: dict[bytes, int] = {}
    found = [
        position if often[line] == 1 else first.setdefault(_digest(image), position)
        for position, (image, line) in enumerate(zip(images, lines, strict=True))
    ]
    return torch.tensor(found).split([len(part) for part in parts])


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
