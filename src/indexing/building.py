"""Images into an index: read beside the network's work, written as they come, gone on with where it was cut off."""

import json
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from src.embedder import Embedder
from src.indexing.index import FORMAT, META, NAMES, TABLES, VECTORS, Index, from_column, to_column
from src.indexing.sources import Entry, Source
from src.running.hardware import describe_versions
from src.running.runs import write_atomically

AHEAD = 3  # groups of images that are read while the network works
LARGEST = 4096  # images of a group, where an older index has most of them
SAME = ("run", "space", "precision", "fingerprint", "images")  # of an index that is gone on with

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
        FileExistsError: the folder holds something else, or another process is building it.
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
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
        shutil.rmtree(aside, ignore_errors=True)
    return counts


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
    embedder: Embedder, source: Source, old: Index | None, writer: "Writer", report: Callable[[int], object]
) -> Counts:
    counts = Counts()

    def read(entry: Entry) -> tuple[Pixels, str] | OSError:
        try:
            return source.read(entry, embedder.side, embedder.resample)
        except OSError as error:
            return error

    def find(entry: Entry) -> Known:
        row = old.row_of(entry) if old else None
        reason = old.reason_of(entry) if old and row is None else None
        return pool.submit(read, entry) if row is None and reason is None else row if row is not None else str(reason)

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
            left_out.append((entry, str(found)))
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


class Writer:
    """An index on its way: a prefix of the source's images, which survives whoever writes it.

    Attributes:
        rows: images that have a vector.
        left_out: images that have none.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = folder, meta
        self.row = meta["dim"] * 4  # bytes
        if not _goes_on(folder, meta):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        write_atomically(folder / META, json.dumps(meta))
        self.vectors = (folder / VECTORS).open("r+b" if (folder / VECTORS).exists() else "w+b")
        self.names = sqlite3.connect(folder / NAMES)
        if not self.names.execute("select 1 from sqlite_master").fetchone():
            self.names.executescript(TABLES)
        self.header = _write_header(self.vectors, (0, meta["dim"]))
        held = (self.vectors.seek(0, os.SEEK_END) - self.header) // self.row
        self.rows, self.left_out = self._count("images"), self._count("left_out")
        if held < self.rows:
            self._cut(held, self.left_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.names.close()
        self.vectors.close()

    def rest(self, source: Iterable[Entry]) -> Iterator[Entry]:
        """The entries after those that are written; from the first that has changed on, what is written is cut off."""
        entries = iter(source)
        written, left_out = (self._entries(table) for table in ("images", "left_out"))
        next_written, next_left_out = next(written, None), next(left_out, None)
        rows = out = 0
        for entry in entries:
            if entry == next_written:
                rows, next_written = rows + 1, next(written, None)
            elif entry == next_left_out:
                out, next_left_out = out + 1, next(left_out, None)
            else:
                self._cut(rows, out)
                yield entry
                yield from entries
                return
        self._cut(rows, out)

    def append(
        self,
        images: Sequence[tuple[Entry, str]],
        vectors: NDArray[np.float32],
        left_out: Sequence[tuple[Entry, str]],
    ) -> None:
        """Write images with their hashes and vectors, and those left out with the reasons."""
        self.vectors.seek(self.header + self.rows * self.row)
        self.vectors.write(vectors.tobytes())
        self.vectors.flush()
        os.fsync(self.vectors.fileno())
        try:
            with self.names:
                self.names.executemany(
                    "insert into images values (?, ?, ?, ?, ?)",
                    [
                        (row, to_column(entry.name), entry.size, entry.changed, digest)
                        for row, (entry, digest) in enumerate(images, self.rows)
                    ],
                )
                self.names.executemany(
                    "insert into left_out values (?, ?, ?, ?)",
                    [(to_column(entry.name), entry.size, entry.changed, reason) for entry, reason in left_out],
                )
        except sqlite3.Error as error:
            raise OSError(f"{self.folder / NAMES} can't be written: {error}") from error
        self.rows += len(images)
        self.left_out += len(left_out)

    def finish(self) -> None:
        """Complete the files; nothing may be written after."""
        _write_header(self.vectors, (self.rows, self.meta["dim"]))
        self.vectors.flush()
        os.fsync(self.vectors.fileno())
        try:
            for table in ("images", "left_out"):
                self.names.execute(f"create index if not exists {table}_by_name on {table} (name)")
            self.names.execute("create index if not exists images_by_hash on images (hash)")
            self.names.commit()
        except sqlite3.Error as error:
            raise OSError(f"{self.folder / NAMES} can't be written: {error}") from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        said = {"count": self.rows, "left_out": self.left_out, "created": now, "versions": describe_versions()}
        write_atomically(self.folder / META, json.dumps(self.meta | said, indent=1))

    def first_left_out(self) -> str:
        """For who is told that nothing is left."""
        found = self.names.execute("select reason from left_out order by rowid").fetchone()
        return f" that can be decoded: {found[0]}" if found else ""

    def _count(self, table: str) -> int:
        return int(self.names.execute(f"select count(*) from {table}").fetchone()[0])

    def _entries(self, table: str) -> Iterator[Entry]:
        last, page = -1, f"select rowid, name, size, changed from {table} where rowid > ? order by rowid limit 4096"
        while rows := self.names.execute(page, (last,)).fetchall():
            yield from (Entry(from_column(name), size, changed) for _, name, size, changed in rows)
            last = rows[-1][0]

    def _cut(self, rows: int, left_out: int) -> None:
        """Forget all but the first `rows` and `left_out`."""
        with self.names:
            self.names.execute("delete from images where row >= ?", (rows,))
            self.names.execute("delete from left_out where rowid > ?", (left_out,))
        self.rows, self.left_out = rows, left_out
        self.vectors.truncate(self.header + rows * self.row)


def _goes_on(folder: Path, meta: dict[str, Any]) -> bool:
    """Whether what is in `folder` is a part of the index that `meta` describes."""
    with suppress(OSError, ValueError, sqlite3.Error):
        before = json.loads((folder / META).read_text())
        with closing(sqlite3.connect(folder / NAMES)) as names:
            sound = names.execute("pragma quick_check").fetchone() == ("ok",)
        return sound and all(before.get(name) == meta[name] for name in (*SAME, "dim", "format"))
    return False


def _write_header(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Write numpy's header of float32 `shape` at the beginning; as long for any number of rows. Its length in bytes."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.tell()
