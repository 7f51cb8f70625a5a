"""Which images are embedded, in which order, and what is read of them."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.indexing.sources import digest, find_source
from tests.conftest import small_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`b/2.png`, `a.png`, `b.png`, what is no image, and what is hidden."""
    for number, name in enumerate(("b/2.png", "a.png", "b.png", ".hidden.png")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), (number, 0, 0)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.md").write_text("no image")
    return tmp_path / "images"


def test_a_folder_is_walked_in_order(folder: Path) -> None:
    source = find_source(str(folder))
    assert [entry.name for entry in source] == ["a.png", "b/2.png", "b.png"]
    assert source.count() == 3
    entry = next(iter(source))
    found = (folder / "a.png").stat()
    assert entry == ("a.png", found.st_size, found.st_mtime_ns)
    pixels, hashed = source.read(entry, 4, "bilinear")
    assert pixels.tolist() == np.full((4, 4, 3), (1, 0, 0)).tolist()
    assert hashed == digest((folder / "a.png").read_bytes())
    assert source.open("a.png").size == (8, 4)


def test_lists_patterns_files_and_standard_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("images/b.png\n\nimages/a.png\n")
    assert [entry.name for entry in find_source("list.txt")] == ["images/b.png", "images/a.png"]
    assert [entry.name for entry in find_source("images/**/*.png")] == [
        "images/a.png",
        "images/b.png",
        "images/b/2.png",
    ]
    assert [entry.name for entry in find_source("images/a.png")] == ["images/a.png"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(folder / "a.png") + b"\n")))
    source = find_source("-")
    assert source.read(next(iter(source)), 8, "bilinear")[0].shape == (8, 8, 3)
    for missing in ("nothing", "images/*.gif"):
        with pytest.raises(FileNotFoundError, match="images="):
            find_source(missing)


def test_the_rows_of_a_store(tmp_path: Path) -> None:
    small_store(tmp_path / "store", train=3, test=2, size=8)
    source = find_source(str(tmp_path / "store"))
    entries = list(source)
    assert [entry.name for entry in entries] == ["train/0", "train/1", "train/2", "test/0", "test/1"]
    assert source.count() == 5
    expected = np.load(tmp_path / "store" / "test_images.npy")[1]
    assert np.array_equal(source.read(entries[4], 8, "bilinear")[0], expected)
    assert np.array_equal(np.asarray(source.open("test/1")), expected)
    with pytest.raises(ValueError, match="8x8 pixels, the run's are of 16x16"):
        source.read(entries[0], 16, "bilinear")


def test_a_file_that_is_gone_or_broken_is_named(folder: Path) -> None:
    source = find_source(str(folder))
    entries = list(source)
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"no image")
    for entry in (entries[0], entries[2]):
        with pytest.raises(OSError, match=entry.name):
            source.read(entry, 8, "bilinear")
    assert [entry.size for entry in source] == [entries[1].size, 8]
