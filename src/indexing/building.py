"""Images into an index: read beside the network's work, written as they come, gone on with where it was cut off."""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from src.datamodules.images import UnreadableError
from src.embedder import Embedder
from src.indexing.index import FORMAT, META, NAMES, VECTORS, Index
from src.indexing.sources import Entry, Source
from src.indexing.writer import SAME, Writer

AHEAD = 3  # groups of images that are read while the network works
LARGEST = 4096  # images of a group, where an older index has most of them

Pixels = NDArray[np.uint8]
# What is known of an image: its row in an older index, why it was left out there, or how it is being read.
Known = int | str | Future[tuple[Pixels, str] | OSError]


class Counts:
    """What became of the images of a source: how many were embedded now, known before, and left out."""

    embedded = known = left_out = 0


def build(
    embedder: Embedder, source: Source, folder: Path, report: Callable[[int], object] = lambda done: None
) -> Counts:
    """Make `folder` the index of the source's images, embedding those that an index there does not have already.

    Killed at any moment, it goes on when called again, and ends with the same vectors. Memory holds a few groups of
    images and the names in one folder of them, however many there are.

    Args:
        report: is told after each group how many images are done.

    Raises:
        FileExistsError: the folder holds something else, is a whole disk, or another process is building it.
        OSError: the disk is full or the like; what was written is gone on with.
        ValueError: the source has no image that can be decoded.
    """
    meta = {
        "format": FORMAT,
        "run": str(embedder.run.absolute()),
        "checkpoint": embedder.checkpoint,
        "trained": embedder.trained,
        "space": embedder.space,
        "dim": embedder.dim,
        "precision": embedder.precision,
        "fingerprint": embedder.fingerprint,
        "images": source.place,
        "root": str(source.root),
    }
    folder = folder.resolve()  # an index behind a link stays where it is
    if os.path.ismount(folder):
        raise FileExistsError(f"out={folder} is a disk of its own, which can't be replaced: choose a folder on it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, aside = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout as error:
        raise FileExistsError(f"out={folder} is being made by another process: wait, or choose another out") from error
    with lock:
        if aside.exists() and not folder.exists():  # killed between the two renames below
            os.rename(aside, folder)
        old = _open_old(folder, meta)
        with Writer(partial, meta) as writer:
            counts = _write(embedder, source, old, writer, report)
            if not writer.rows:
                raise ValueError(f"images: {source.place} has no image{writer.first_left_out()}")
            writer.finish()
        _dismiss(aside, folder)
        if aside.exists():  # somebody still reads from it
            aside = aside.with_name(f"{aside.name}.{os.getpid()}")
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
        _dismiss(aside, folder)
    return counts


def _dismiss(aside: Path, folder: Path) -> None:
    """Delete an index in whose place `folder` stands; what else people have put into it moves there."""
    for child in aside.iterdir() if aside.is_dir() else ():
        if not child.name.startswith((META, NAMES, Path(VECTORS).stem)):
            os.replace(child, folder / child.name)
    shutil.rmtree(aside, ignore_errors=True)


def _open_old(folder: Path, meta: dict[str, Any]) -> Index | None:
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / META).exists():
        raise FileExistsError(f"out={folder} exists and is no index: choose another out")
    old = Index(folder)
    for name in SAME:
        if old.meta[name] != meta[name]:
            raise FileExistsError(
                f"out={folder} is an index with another {name}, {old.meta[name]} and not {meta[name]}: "
                "choose another out"
            )
    return old


def _write(
    embedder: Embedder, source: Source, old: Index | None, writer: Writer, report: Callable[[int], object]
) -> Counts:
    counts = Counts()

    def read(entry: Entry) -> tuple[Pixels, str] | OSError:
        try:
            return source.read(entry, embedder.side, embedder.resample)
        except OSError as error:
            return error

    def find(entry: Entry) -> Known:
        if old and (row := old.row_of(entry)) is not None:
            return row
        if old and (reason := old.reason_of(entry)) is not None:
            return reason
        return pool.submit(read, entry)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        groups = _group(writer.rest(source), find, embedder.batch_size)
        ahead = deque(islice(groups, AHEAD))
        counts.known, counts.left_out = writer.rows, writer.left_out
        try:
            while ahead:
                images, vectors, left_out = _embed(embedder, old, ahead.popleft(), counts)
                writer.append(images, vectors, left_out)
                report(writer.rows + writer.left_out)
                ahead.extend(islice(groups, 1))
        finally:
            pool.shutdown(cancel_futures=True)
    return counts


def _group(entries: Iterable[Entry], find: Callable[[Entry], Known], size: int) -> Iterator[list[tuple[Entry, Known]]]:
    """Entries with what is known of them, in groups of which `size` are being read."""
    group: list[tuple[Entry, Known]] = []
    reading = 0
    for entry in entries:
        group.append((entry, known := find(entry)))
        reading += isinstance(known, Future)
        if reading == size or len(group) == LARGEST:
            yield group
            group, reading = [], 0
    if group:
        yield group


def _embed(
    embedder: Embedder, old: Index | None, group: Sequence[tuple[Entry, Known]], counts: Counts
) -> tuple[list[tuple[Entry, str]], NDArray[np.float32], list[tuple[Entry, str]]]:
    """The images of a group that have a vector, with their hashes; the vectors; and why the others have none."""
    images: list[tuple[Entry, str]] = []
    left_out: list[tuple[Entry, str]] = []
    vectors = np.empty((len(group), embedder.dim), np.float32)
    squares, fresh = [], []
    for entry, known in group:
        found = known.result() if isinstance(known, Future) else known
        if isinstance(found, str | OSError):
            looked_at = entry._replace(changed=-1) if isinstance(found, UnreadableError) else entry  # -1: look again
            left_out.append((looked_at, str(found)))
            continue
        if isinstance(found, int):
            assert old is not None
            vectors[len(images)], digest = old.vectors[found], old.find(found).hash
        else:
            squares.append(found[0])
            fresh.append(len(images))
            digest = found[1]
        images.append((entry, digest))
    if fresh:
        vectors[fresh] = embedder.encode(np.stack(squares))
    counts.embedded += len(fresh)
    counts.known += len(images) - len(fresh)
    counts.left_out += len(left_out)
    return images, vectors[: len(images)], left_out
