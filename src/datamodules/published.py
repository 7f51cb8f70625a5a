"""The published fine-grained sets: found, or fetched, or asked for; decoded; and held to their published counts."""

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.datamodules.base import StoreDataModule
from src.datamodules.images import DECODER, decode_split
from src.datamodules.store import digest_of
from src.hints import Checksum, Count, Counts, Name, Pixels, Resample, Text
from src.running.download import download

Entry = tuple[Path, int]  # an image file and its class number, from 0


class PublishedDataModule(StoreDataModule):
    """A set whose first classes train and whose last classes test, with counts known from its publication.

    Subclasses read the class names and a list of files with their classes out of the unpacked original.

    Args:
        root: folder with the original, unpacked or as the archive; downloaded into it where there is an address.
        archive: the archive's file name; None where no one archive is known.
        urls: where the archive may be had, tried in turn.
        checksum: the archive's, `md5:…`.
        train_classes: how many classes, the first, to train on.
        counts: images to expect in the training and in the test set; None checks nothing.
        size: side of the stored images; the aspect ratio is ignored.
        resample: the filter they are resized by: `bilinear`, `bicubic` or `lanczos`.
        skip_broken: leave out, and name, files that can't be decoded, instead of stopping.
    """

    layout = ""  # what an unpacked original looks like, for a person who has to put it there

    def __init__(
        self,
        *,
        root: Text,
        archive: Name | None,
        urls: Sequence[Text],
        checksum: Checksum | None,
        train_classes: Count,
        counts: Counts | None,
        size: Pixels,
        resample: Resample,
        skip_broken: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.archive, self.urls, self.checksum = archive, urls, checksum
        self.train_classes, self.counts = train_classes, counts
        self.size, self.resample, self.skip_broken = size, resample, skip_broken
        place = str(self.root) if counts is None else None  # an original of the published counts is the same anywhere
        digest = digest_of(DECODER, train_classes, counts and [*counts], skip_broken, place)
        self.path = self.path.with_name(f"{self.name}-{size}-{resample}-{digest}")

    def read(self) -> tuple[list[str], list[Entry]] | None:
        """Class names and files of the original unpacked in `root`; None where it isn't there."""
        raise NotImplementedError

    def _read(self) -> tuple[list[str], list[Entry]] | None:
        try:
            return self.read()
        except FileNotFoundError:  # which says what to put where
            raise
        except Exception as error:  # a damaged list or table raises what it likes
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise OSError(
                f"the lists of {self.name} in {self.root} are damaged ({reason}): fetch them again"
            ) from error

    def build(self, folder: Path) -> dict[str, Any]:
        classes, entries = self._read() or self._fetch_alone()
        root = os.path.normpath(self.root)
        for path, label in entries:
            if not os.path.normpath(path).startswith(f"{root}{os.sep}") or not 0 <= label < len(classes):
                raise OSError(f"{self.name} in {root}: its lists name {path} of class {label + 1} of {len(classes)}")
        splits = {
            "train": [entry for entry in entries if entry[1] < self.train_classes],
            "test": [entry for entry in entries if entry[1] >= self.train_classes],
        }
        found = [len(split) for split in splits.values()]
        if self.counts is not None and found != list(self.counts):
            raise OSError(
                f"{self.name} in {self.root} has {found[0]:,} training and {found[1]:,} test images, "
                f"published are {self.counts[0]:,} and {self.counts[1]:,}: files are missing, or it is another version"
            )
        absent = [path for path, _ in entries if not path.is_file()]
        if absent:
            raise OSError(f"{self.name}: {len(absent):,} of {len(entries):,} images are missing, first {absent[0]}")
        left_out: list[str] = []
        for split, members in splits.items():
            paths, labels = [path for path, _ in members], [label for _, label in members]
            left_out += decode_split(folder, split, paths, labels, self.size, self.resample, self.skip_broken)
        return {"classes": classes, "source": str(self.root), "checksum": self.checksum, "left_out": left_out}

    def missing(self) -> str:
        absent = not self.path.exists() and self._read() is None
        return self._request() if absent and not (self.archive and (self.root / self.archive).exists()) else ""

    def _request(self) -> str:
        if self.archive is None or self.checksum is None:
            return f"{self.name} is not here, and no address is known. Put into {self.root}: {self.layout}"
        content = f"Put {self.archive} ({self.checksum}) into {self.root}, or its content: {self.layout}"
        return f"{self.name} is not here. {content}"

    def _fetch_alone(self) -> tuple[list[str], list[Entry]]:
        """One process at a time, also of those that make another store of the same original."""
        if self.archive is None or self.checksum is None:
            raise FileNotFoundError(self._request())
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{self.archive}.lock"):
            return self._read() or self._fetch(self.archive, self.checksum)

    def _fetch(self, archive: str, checksum: str) -> tuple[list[str], list[Entry]]:
        path, reasons = self.root / archive, []
        if not path.exists():
            for url in self.urls:
                try:
                    download(url, path, checksum)
                    break
                except OSError as error:
                    reasons.append(str(error))
        if not path.exists():
            raise FileNotFoundError(f"{self._request()}. {' '.join(reasons)}".rstrip())
        unpack(path, self.root)
        found = self._read()
        if found is None:
            raise OSError(f"{path} is unpacked, but not what was expected: {self.layout}")
        return found


def unpack(archive: Path, folder: Path) -> None:
    """Extract a tar or zip archive into `folder`, whole or not at all; no member can leave it.

    Raises:
        OSError: a member would leave the folder, or the archive is damaged; the message names both.
    """
    print(f"unpacking {archive}")
    partial = folder / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if not (partial / name).resolve().is_relative_to(partial.resolve()):
                        raise OSError(f"its member {name} would leave the folder")
                packed.extractall(partial)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(partial, filter="data")
        _move(partial, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise OSError(f"{archive} can't be unpacked into {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Rename; of two folders the content, into what is there already."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _move(child, target / child.name)
    else:
        os.replace(source, target)
