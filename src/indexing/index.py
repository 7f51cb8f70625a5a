"""An index: a folder with the vectors of many images and their names, opened at once however large it is.

`embeddings.npy` float32 `(N, D)`, unit norm; `images.sqlite`, whose table `images` has for each `row` the `name`, the
`size` in bytes, the time `changed` in ns and a `hash` of the file, and whose table `left_out` those that could not be
decoded; and `meta.json`. It is built beside its place and renamed when complete (`src.indexing.building`).
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.indexing.sources import Entry, Source, reopen

FORMAT = 1
VECTORS, NAMES, META = "embeddings.npy", "images.sqlite", "meta.json"
TABLES = """
begin;
create table if not exists images (row integer primary key, name not null, size integer not null,
                                   changed integer not null, hash text not null);
create table if not exists left_out (name not null, size integer not null, changed integer not null,
                                     reason text not null);
commit;
"""
SAID = ("run", "checkpoint", "trained", "space", "dim", "precision", "fingerprint", "images", "root", "count")


class Found(NamedTuple):
    """An image of an index: its row, its name, and the hash of its file."""

    row: int
    name: str
    hash: str


class Index:
    """An index that is complete.

    Args:
        folder: where it is.

    Attributes:
        vectors: `(N, D)`, mapped from disk.
        meta: what `meta.json` says: `run`, `checkpoint`, `trained`, `space`, `dim`, `precision` and
            `fingerprint` of the network; `images`, where they came from, `root` and `count`; `left_out`, `created`
            and `versions`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / META).is_file():
            raise FileNotFoundError(f"{folder} is no index ({META} is missing): python -m src.embed makes one")
        try:
            self.meta = _read_meta(folder / META)
            self.vectors: NDArray[np.float32] = np.load(folder / VECTORS, mmap_mode="c")
            names = f"{(folder / NAMES).absolute().as_uri()}?mode=ro"
            self.names = sqlite3.connect(names, uri=True, check_same_thread=False)  # SQLite has threads take turns
            self.names.execute("pragma trusted_schema = off")  # it may be a stranger's
            tables = self.names.execute("select name from sqlite_master where type = 'table'").fetchall()
            if not {("images",), ("left_out",)} <= {*tables}:
                raise ValueError(f"{NAMES} has not the tables images and left_out")
            rows = self.names.execute("select max(row) + 1 from images").fetchone()[0] or 0
            found = (self.vectors.dtype, self.vectors.shape, rows)
            wanted = (np.float32, (self.meta["count"], self.meta["dim"]), self.meta["count"])
            if found != wanted:
                raise ValueError(f"{VECTORS} and {NAMES} hold {found}, not {wanted}")
        except (OSError, ValueError, sqlite3.Error, EOFError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the index {folder} is damaged ({reason}): move it away, and make it anew by src.embed"
            ) from error

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def source(self) -> Source:
        """Where its images can be looked at, if they are still there."""
        return reopen(self.meta["images"], Path(self.meta["root"]))

    def find(self, row: int) -> Found:
        """The image of a row."""
        name, digest = self.names.execute("select name, hash from images where row = ?", (row,)).fetchone()
        return Found(row, from_column(name), digest)

    def open(self, row: int) -> Image.Image:
        """The image of a row, to look at.

        Raises:
            OSError, ValueError, LookupError: it is no longer there.
        """
        return self.source.open(self.find(row).name)

    def path(self, row: int) -> str:
        """Where the image of a row is, for a person."""
        return str(self.source.root / self.find(row).name)

    def copies(self) -> NDArray[np.int64]:
        """Rows whose file has the same bytes as one in an earlier row, and the earliest of these, `(C, 2)`."""
        firsts = "select hash, min(row) as first from images group by hash having count(*) > 1"
        found = f"select row, first from images natural join ({firsts}) where row != first order by row"
        return np.array(self.names.execute(found).fetchall(), np.int64).reshape(-1, 2)

    def row_of(self, entry: Entry) -> int | None:
        """Where an image is that has not changed since."""
        asked = (to_column(entry.name), entry.size, entry.changed)
        found = self.names.execute("select row from images where name = ? and size = ? and changed = ?", asked)
        return next((row for (row,) in found), None)

    def reason_of(self, entry: Entry) -> str | None:
        """Why an image that has not changed since was left out."""
        asked = (to_column(entry.name), entry.size, entry.changed)
        found = self.names.execute("select reason from left_out where name = ? and size = ? and changed = ?", asked)
        return next((reason for (reason,) in found), None)

    def left_out(self) -> Iterator[str]:
        """Why images were left out, a line each."""
        yield from (reason for (reason,) in self.names.execute("select reason from left_out order by rowid"))


def to_column(name: str) -> str | bytes:
    """A name as the table has it: text, or where it is no Unicode its bytes."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return os.fsencode(name)


def from_column(name: str | bytes) -> str:
    """What `to_column` was given."""
    return os.fsdecode(name)


def _read_meta(path: Path) -> dict[str, Any]:
    meta = json.loads(path.read_text())
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{META} is not of format {FORMAT}")
    missing = [name for name in SAID if not isinstance(meta.get(name), int if name in ("dim", "count") else str)]
    if missing:
        raise ValueError(f"{META} does not say {', '.join(missing)}")
    return meta
