"""An index opens at once, and a damaged one is named."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.embedder import Embedder
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.sources import find_source


def test_rows_and_their_images(index: Index, pictures: Path) -> None:
    assert len(index) == 40
    assert index.find(39).name == "more/0039.png"
    assert index.path(39) == str(pictures / "more" / "0039.png")
    assert index.open(39).size == (32, 32)


def test_copies_are_files_of_the_same_bytes(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(pictures / "0003.png", pictures / "more" / "copy.png")
    build(embedder, find_source(str(pictures)), tmp_path / "index")
    index = Index(tmp_path / "index")
    rows: dict[str, list[str]] = {}
    for row in range(41):
        rows.setdefault(index.find(row).hash, []).append(index.find(row).name)
    assert len(rows) == 40
    assert ["0003.png", "more/copy.png"] in rows.values()


def write(index: Index, name: str, value: object) -> None:
    meta = json.loads((index.folder / "meta.json").read_text())
    (index.folder / "meta.json").write_text(json.dumps(meta | {name: value}))


def drop(index: Index) -> None:
    with sqlite3.connect(index.folder / "images.sqlite") as names:
        names.execute("delete from images where row = 39")


def view(index: Index) -> None:
    """What would never end to be read."""
    endless = "with recursive n(row) as (select 1 union all select row + 1 from n) select row, '' name from n"
    with sqlite3.connect(index.folder / "images.sqlite") as names:
        names.execute("drop table images")
        names.execute(f"create view images as {endless}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda index: write(index, "count", 39), "hold"),
        (lambda index: write(index, "dim", "128"), "dim"),
        (lambda index: write(index, "run", None), "run"),
        (lambda index: write(index, "format", 2), "format 1"),
        (lambda index: (index.folder / "meta.json").write_text("{"), "line 1"),
        (lambda index: (index.folder / "meta.json").write_text("[" * 100_000), "recursion"),
        (lambda index: (index.folder / "embeddings.npy").write_bytes(b"no array"), "magic|pickle"),
        (lambda index: np.save(index.folder / "embeddings.npy", np.array([{}]), allow_pickle=True), "[Oo]bject"),
        (lambda index: (index.folder / "embeddings.npy").unlink(), "No such file"),
        (lambda index: (index.folder / "images.sqlite").write_bytes(b"no database" * 500), "not a database"),
        (lambda index: (index.folder / "images.sqlite").unlink(), "unable to open"),
        (drop, "hold"),
        (view, "tables"),
    ],
)
def test_damage_is_named(index: Index, damage: Callable[[Index], object], words: str) -> None:
    damage(index)
    with pytest.raises(ValueError, match=f"(?s)index {index.folder} is damaged.*({words})"):
        Index(index.folder)


def test_what_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no index .*src\.embed"):
        Index(tmp_path)
