"""Which images to embed, one after another, and their pixels: files, or the rows of a store."""

import glob
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.datamodules.images import UnreadableError, open_rgb, printable, to_square, walk_images
from src.datamodules.store import read_store


class Entry(NamedTuple):
    """An image by its name, and by what shows that it has changed: its size in bytes and its time of change in ns."""

    name: str
    size: int
    changed: int


class Source(Protocol):
    """Images in a fixed order.

    Attributes:
        place: where they are, in words: it is another source where this differs.
        root: what their names are relative to.
    """

    place: str
    root: Path

    def __iter__(self) -> Iterator[Entry]: ...

    def count(self) -> int | None:
        """How many there are; None where only reading on would tell."""

    def read(self, entry: Entry, side: int, resample: str) -> tuple[NDArray[np.uint8], str]:
        """An image as `(side, side, 3)`, and a digest of what is stored of it.

        Raises:
            OSError: it can't be decoded, or is `UnreadableError`; the message names it.
        """

    def open(self, name: str) -> Image.Image:
        """An image to look at, RGB, as large as it is stored. Errors as of `read`."""


class Files:
    """Image files by their names.

    Args:
        place, root: see `Source`.
        names: each call goes through them anew.
        countable: whether going through them once more tells how many there are.
    """

    def __init__(self, place: str, root: Path, names: Callable[[], Iterable[str]], countable: bool = True) -> None:
        self.place, self.root, self.names, self.countable = place, root, names, countable

    def __iter__(self) -> Iterator[Entry]:
        for name in self.names():
            path = self.root / name
            try:
                found = path.stat()
                yield Entry(name, found.st_size, found.st_mtime_ns)
            except (OSError, ValueError):  # a name with a zero byte; reading it will say so
                yield Entry(name, -1, -1)

    def count(self) -> int | None:
        return sum(1 for _ in self.names()) if self.countable else None

    def read(self, entry: Entry, side: int, resample: str) -> tuple[NDArray[np.uint8], str]:
        path = self.root / entry.name
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise UnreadableError(f"{printable(path)} can't be read: {reason}") from error
        return to_square(open_rgb(io.BytesIO(content), printable(path)), side, resample), digest(content)

    def open(self, name: str) -> Image.Image:
        return open_rgb(self.root / name, printable(self.root / name))


class Rows:
    """The images of a store, called `test/17`, test and training."""

    def __init__(self, root: Path) -> None:
        self.place, self.root, self.store = f"the store {root}", root, read_store(root)

    def __iter__(self) -> Iterator[Entry]:
        changed = (self.root / "meta.json").stat().st_mtime_ns
        for name, split in self.store.splits.items():
            size = split.images[0].numel()
            yield from (Entry(f"{name}/{row}", size, changed) for row in range(len(split)))

    def count(self) -> int:
        return sum(len(split) for split in self.store.splits.values())

    def read(self, entry: Entry, side: int, resample: str) -> tuple[NDArray[np.uint8], str]:
        pixels = self._pixels(entry.name)
        if pixels.shape[:2] != (side, side):
            raise ValueError(
                f"images={self.root}: the store has images of {pixels.shape[1]}x{pixels.shape[0]} pixels, the run's "
                f"are of {side}x{side}: give the folder they came from"
            )
        return pixels, digest(pixels.tobytes())

    def open(self, name: str) -> Image.Image:
        return Image.fromarray(self._pixels(name))

    def _pixels(self, name: str) -> NDArray[np.uint8]:
        split, _, row = name.partition("/")
        pixels: NDArray[np.uint8] = self.store.splits[split].images[int(row)].numpy()
        return pixels


def find_source(images: str) -> Source:
    """What a person calls `images`: a folder, a store, a list of files (`.txt`), a file, a pattern, or `-`.

    `-` is standard input; it and a list have a path a line, relative to where the command runs.

    Raises:
        FileNotFoundError: there is nothing of that name.
    """
    here = Path.cwd()
    if images == "-":
        return Files("standard input", here, lambda: _lines(sys.stdin.buffer), countable=False)
    path = Path(images).expanduser()
    if (path / "test_images.npy").is_file():
        return Rows(path.resolve())
    if path.is_dir():
        root = path.resolve()
        return Files(f"the folder {printable(root)}", root, lambda: map(_relative_to(root), walk_images(root)))
    if path.suffix == ".txt" and path.is_file():
        listed = f"the list {printable(path.resolve())}"
        return Files(listed, here, lambda: _lines(path.open("rb")))
    if path.is_file():
        return Files(f"the file {printable(path.resolve())}", here, lambda: [str(path)])
    if glob.has_magic(str(path)):
        pattern = str(path)
        if next(glob.iglob(pattern, recursive=True), None) is None:
            raise FileNotFoundError(f"images={images}: the pattern fits no file")
        return Files(f"the pattern {pattern} in {here}", here, lambda: sorted(glob.iglob(pattern, recursive=True)))
    raise FileNotFoundError(f"images={images}: there is no such folder, file, list or store")


def reopen(place: str, root: Path) -> Source:
    """The source of an index, to look at its images by name; there may be other ones by now."""
    return Rows(root) if place.startswith("the store ") else Files(place, root, lambda: [])


def _relative_to(root: Path) -> Callable[[Path], str]:
    return lambda path: str(path.relative_to(root))


def _lines(file: BinaryIO) -> Iterator[str]:
    with file:
        yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in file if line.strip())


def digest(content: bytes) -> str:
    """The same for the same bytes: 32 letters."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
