"""An index is complete or not there, goes on where it was cut off, and embeds nothing twice."""

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.embedder import Embedder, load
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.sources import Entry, find_source
from tests.test_embedder import changed


def made(embedder: Embedder, images: Path, out: Path) -> tuple[int, int, int]:
    counts = build(embedder, find_source(str(images)), out)
    return counts.embedded, counts.known, counts.left_out


class Cut(Exception):
    """What ends a building after its first group of images."""


def cut(done: int) -> None:
    raise Cut


def content(folder: Path) -> tuple[bytes, list[str]]:
    """The bytes of the vectors, and all that is said of the images."""
    with closing(sqlite3.connect(folder / "images.sqlite")) as names:
        return (folder / "embeddings.npy").read_bytes(), list(names.iterdump())


def test_it_holds_the_vectors_of_the_images_in_their_order(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    assert made(embedder, pictures, tmp_path / "out") == (40, 0, 0)
    index = Index(tmp_path / "out")
    paths = sorted(pictures.rglob("*.png"))
    assert [index.path(row) for row in range(40)] == [str(path) for path in paths]
    assert np.array_equal(index.vectors, embedder(paths))
    assert np.array_equal(np.load(tmp_path / "out" / "embeddings.npy"), index.vectors)
    assert index.meta["run"] == str(embedder.run)
    assert (index.meta["space"], index.meta["count"], index.meta["dim"]) == ("embedding", 40, 128)
    assert np.array_equal(np.asarray(index.open(3)), np.asarray(Image.open(paths[3])))
    assert not list(tmp_path.glob(".out.partial")) + list(tmp_path.glob(".out.old"))


def test_again_only_what_is_new_or_changed_is_embedded(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(embedder, pictures, out)
    before = content(out)
    assert made(embedder, pictures, out) == (0, 40, 0)
    assert content(out) == before
    Image.new("RGB", (32, 32), "red").save(pictures / "0003.png")
    shutil.copy(pictures / "0004.png", pictures / "0004b.png")
    (pictures / "0010.png").unlink()
    assert made(embedder, pictures, out) == (2, 38, 0)
    made(embedder, pictures, tmp_path / "fresh")
    assert content(out)[1] == content(tmp_path / "fresh")[1]
    # Those in a batch of another size may be rounded otherwise.
    assert np.allclose(Index(out).vectors, Index(tmp_path / "fresh").vectors, atol=1e-6)
    assert [Index(out).path(row) for row in range(3, 6)] == [
        str(pictures / name) for name in ("0003.png", "0004.png", "0004b.png")
    ]


def test_broken_files_are_left_out_and_looked_at_once(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (pictures / "0007.png").write_bytes(b"no image")
    (pictures / "gone.png").symlink_to(pictures / "nothing")
    assert made(embedder, pictures, out) == (39, 0, 2)
    index = Index(out)
    reasons = list(index.left_out())
    assert "0007.png" in reasons[0]
    assert "gone.png" in reasons[1]
    assert index.meta["left_out"] == 2
    assert "0007.png" not in {index.find(row).name for row in range(39)}
    assert made(embedder, pictures, out) == (0, 39, 2)
    Image.new("RGB", (32, 32), "red").save(pictures / "0007.png")
    assert made(embedder, pictures, out) == (1, 39, 1)
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png can't be decoded"):
        made(embedder, only, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_that_could_not_be_read_is_tried_again(
    embedder: Embedder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in the way, permissions or a network, need not have changed the file."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "0007.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for _ in range(2):
            assert made(embedder, pictures, tmp_path / "out")[1:] in ((0, 1), (39, 1))
    assert next(Index(tmp_path / "out").left_out()).endswith("0007.png can't be read: Permission denied")
    assert made(embedder, pictures, tmp_path / "out") == (1, 39, 0)

    small = load(embedder.run, accelerator="cpu", precision="32-true")
    small.batch_size = 16
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(Cut):
            build(small, find_source(str(pictures)), tmp_path / "again", cut)
    assert made(small, pictures, tmp_path / "again") == (24, 15, 1), "what was written before it and after it stays"
    assert made(small, pictures, tmp_path / "again") == (1, 39, 0)


def test_an_index_behind_a_link_stays_there_with_what_else_lies_in_it(
    embedder: Embedder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "index").mkdir(parents=True)
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "disk" / "index")
    for number in range(3):
        made(embedder, pictures, out)
        assert out.is_symlink()
        assert len(Index(out)) == 40 - number
        (out / "notes.txt").write_text("mine")
        (pictures / f"000{number}.png").unlink()
    assert made(embedder, pictures, out) == (0, 37, 0)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "disk").iterdir() if path.is_dir()] == ["index"]
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(FileExistsError, match="is a disk of its own, which can't be replaced: choose a folder on it"):
        made(embedder, pictures, out)


@pytest.mark.skipif(os.name != "posix", reason="names that are no Unicode")
def test_any_name_of_a_file_can_be_found_again(embedder: Embedder, tmp_path: Path) -> None:
    names = ["quo'te\n.png", "ä ö.png", os.fsdecode(b"\xff\xfe.png")]
    (tmp_path / "odd").mkdir()
    for name in names:
        Image.new("RGB", (8, 8), "blue").save(tmp_path / "odd" / name)
    made(embedder, tmp_path / "odd", tmp_path / "out")
    index = Index(tmp_path / "out")
    assert {index.find(row).name for row in range(3)} == set(names)
    assert made(embedder, tmp_path / "odd", tmp_path / "out") == (0, 3, 0)


def _build_slowly(trained: Path, images: Path, out: Path, batch: int) -> None:
    torch.set_num_threads(1)
    embedder = load(trained, accelerator="cpu", precision="32-true")
    embedder.batch_size = batch
    build(embedder, find_source(str(images)), out, lambda done: time.sleep(0.02))


def test_killed_at_any_moment_it_ends_with_the_same_bytes(trained: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0007.png").write_bytes(b"no image")
    context = multiprocessing.get_context("fork")
    out, whole = tmp_path / "out", tmp_path / "whole"
    _build_slowly(trained, pictures, whole, 2)
    kills = 0
    while not out.exists():
        process = context.Process(target=_build_slowly, args=(trained, pictures, out, 2))
        process.start()
        before = (tmp_path / ".out.partial" / "embeddings.npy").stat().st_size if kills else 0
        while process.is_alive() and not out.exists():  # until a few more groups are written, then at any moment
            partial = tmp_path / ".out.partial" / "embeddings.npy"
            if partial.exists() and partial.stat().st_size >= before + 3 * 2 * 128 * 4:
                time.sleep(np.random.default_rng(kills).uniform(0, 0.03))
                break
            time.sleep(0.002)
        if not out.exists():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
        assert kills < 40
    assert kills > 2
    assert content(out) == content(whole)
    assert not (tmp_path / ".out.partial").exists()


def test_what_changes_while_it_is_cut_off_is_seen(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    small = load(embedder.run, accelerator="cpu", precision="32-true")
    small.batch_size = 16
    with pytest.raises(Cut):
        build(small, find_source(str(pictures)), tmp_path / "out", cut)
    partial = json.loads((tmp_path / ".out.partial" / "meta.json").read_text())
    assert "count" not in partial
    Image.new("RGB", (32, 32), "red").save(pictures / "0003.png")
    assert made(small, pictures, tmp_path / "out") == (37, 3, 0)  # the three before it were written
    assert np.allclose(Index(tmp_path / "out").vectors, embedder(sorted(pictures.rglob("*.png"))), atol=1e-6)
    # Vectors that were lost, as by a power cut, are made again.
    with pytest.raises(Cut):
        build(small, find_source(str(pictures)), tmp_path / "again", cut)
    vectors = tmp_path / ".again.partial" / "embeddings.npy"
    os.truncate(vectors, vectors.stat().st_size - 5 * 128 * 4 - 7)
    assert made(small, pictures, tmp_path / "again") == (30, 10, 0)
    assert np.allclose(Index(tmp_path / "again").vectors, Index(tmp_path / "out").vectors, atol=1e-6)


def test_nothing_else_is_written_over(embedder: Embedder, pictures: Path, index: Index, tmp_path: Path) -> None:
    other = load(changed(embedder.run, tmp_path / "other", lambda state: state["head.linear.bias"].add_(1)))
    with pytest.raises(FileExistsError, match=r"out=.*another run"):
        made(other, pictures, index.folder)
    with pytest.raises(FileExistsError, match=r"out=.*another images"):
        made(embedder, pictures / "more", index.folder)
    with pytest.raises(FileExistsError, match=r"exists and is no index"):
        made(embedder, pictures, pictures / "more")
    assert len(Index(index.folder)) == 40


class Many:
    """A source of as many images as are asked for, all alike."""

    place, root = "many", Path("/")

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Entry]:
        return (Entry(f"folder/{number}.png", 1, 1) for number in range(self.number))

    def count(self) -> int:
        return self.number

    def read(self, entry: Entry, side: int, resample: str) -> tuple[Any, str]:
        return np.zeros((side, side, 3), np.uint8), entry.name

    def open(self, name: str) -> Any:
        raise OSError


def test_memory_does_not_grow_with_the_number_of_images(embedder: Embedder, tmp_path: Path) -> None:
    import tracemalloc

    class Quick(Embedder):
        def __init__(self) -> None:
            self.__dict__ |= embedder.__dict__

        def encode(self, squares: Any) -> Any:
            return np.zeros((len(squares), self.dim), np.float32)

    def peak(count: int) -> int:
        tracemalloc.start()
        build(Quick(), Many(count), tmp_path / str(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(4_000), peak(40_000)
    assert many < few + 4 * 2**20  # the vectors alone would be 18 MiB more
