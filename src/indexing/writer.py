"""An index on its way: a prefix of its images, that survives whoever writes it."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from src.datamodules.store import write_header
from src.indexing.index import META, NAMES, TABLES, VECTORS, from_column, to_column
from src.indexing.sources import Entry
from src.running.hardware import describe_versions
from src.running.runs import write_atomically

SAME = ("run", "space", "precision", "fingerprint", "images")  # of an index that is gone on with


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
        self.names.executescript(TABLES)
        self.header = write_header(self.vectors, "<f4", (0, meta["dim"]))
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
            elif next_left_out in (entry, entry._replace(changed=-1)):  # that could not be read waits for the next time
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
        write_header(self.vectors, "<f4", (self.rows, self.meta["dim"]))
        self.vectors.flush()
        os.fsync(self.vectors.fileno())
        try:
            for table in ("images", "left_out"):
                self.names.execute(f"create index if not exists {table}_by_name on {table} (name)")
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
