import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.datamodules.folder import Folder
from src.datamodules.store import Store
from tests.conftest import datamodule_options


def fill(folder: Path, count: int, level: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((6, 5, 3), level, np.uint8)).save(folder / f"{number}.png")


def make(root: Path, cache: Path, **changes: Any) -> Folder:
    options: dict[str, Any] = {"root": str(root), "split": "auto", "test_fraction": 0.5, "size": 8}
    options |= {"resample": "bilinear", "skip_broken": False}
    return Folder(**datamodule_options(cache, name="folder", batch_size=2, **options | changes))


def read(root: Path, cache: Path, **changes: Any) -> Store:
    datamodule = make(root, cache, **changes)
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.store is not None
    return datamodule.store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pets"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_train_and_test_folders(root: Path, cache: Path) -> None:
    for number, (split, name, count) in enumerate(
        [("train", "cat", 3), ("train", "dog", 2), ("test", "emu", 4), ("test", "cat", 1)]
    ):
        fill(root / split / name, count, level=10 * number)
    fill(root / "train" / "dog" / "puppies", 1, level=10)
    store = read(root, cache)
    assert store.classes == ["cat", "dog", "emu"]
    assert store.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert store.splits["test"].labels.tolist() == [0, 2, 2, 2, 2]
    assert store.splits["train"].images[:, 0, 0, 0].tolist() == [0, 0, 0, 10, 10, 10]
    assert store.splits["test"].images[:, 0, 0, 0].tolist() == [30, 20, 20, 20, 20]


def test_labels_are_optional_for_training(root: Path, cache: Path) -> None:
    fill(root / "train", 3)
    fill(root / "test" / "cat", 2)
    store = read(root, cache)
    assert store.splits["train"].labels.tolist() == [-1, -1, -1]
    assert store.splits["test"].labels.tolist() == [0, 0]


@pytest.mark.parametrize(("fraction", "train"), [(0.5, ["a", "b"]), (0.25, ["a", "b", "c"]), (0.99, ["a"])])
def test_one_folder_split_by_classes(root: Path, cache: Path, fraction: float, train: list[str]) -> None:
    for name in "abcd":
        fill(root / name, 3)
    store = read(root, cache, test_fraction=fraction)
    found = {split: {store.classes[label] for label in store.splits[split].labels} for split in ("train", "test")}
    assert found == {"train": set(train), "test": set("abcd") - set(train)}


def test_one_folder_split_at_random(root: Path, cache: Path) -> None:
    for name in "ab":
        fill(root / name, 20)
    store = read(root, cache, split="random", test_fraction=0.25)
    assert store.splits["train"].labels.bincount().tolist() == [15, 15], "of every class alike"
    assert store.splits["test"].labels.bincount().tolist() == [5, 5]
    again = read(root, cache, split="random", test_fraction=0.25)
    assert again.splits["test"].labels.tolist() == store.splits["test"].labels.tolist()


def test_a_changed_folder_or_option_has_its_own_store(root: Path, cache: Path) -> None:
    for name in "ab":
        fill(root / name, 2)
    first = make(root, cache).path
    assert make(root, cache).path == first
    assert make(root, cache, size=9).path != first
    fill(root / "a", 3)
    assert make(root, cache).path != first


@pytest.mark.parametrize(
    ("layout", "changes", "error", "message"),
    [
        ({}, {}, FileNotFoundError, "there is no such folder"),
        ({"a": 2}, {}, ValueError, "1 class can't be split; dataset.split=random can"),
        ({"a": 2, "b": 0}, {}, ValueError, "class folders b hold no images"),
        (
            {"train/a": 2},
            {},
            FileNotFoundError,
            "train: named like a split .* no folder test: make train/ and test/",
        ),
        ({"Testing/a": 2, "train/a": 2}, {}, FileNotFoundError, "Testing, train: named like .* no folder test"),
        ({"cat": 2, "dog": 2, "valid": 2}, {}, FileNotFoundError, "valid: named like a split .* no folder train"),
        ({"TRAINING/a": 2, "val/a": 2, ".git": 0}, {"split": "classes"}, ValueError, "TRAINING, val: named like"),
        ({"train/a": 2, "test/a": 2}, {"split": "random"}, ValueError, "test, train: named like splits of the images"),
        ({"train/a": 2, "Train/b": 2, "test/a": 2}, {}, ValueError, "Train, train differ only in case"),
        ({"train/a": 2, "TEST/a": 2, "Test/b": 2}, {}, ValueError, "TEST, Test differ only in case"),
        ({"train/a": 2, "test": 0}, {}, ValueError, "no images to test on"),
        ({".": 2, "a": 1}, {}, ValueError, "images lie outside of class folders"),
    ],
)
def test_impossible_folders_are_named(
    root: Path, cache: Path, layout: dict[str, int], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    for name, count in layout.items():
        fill(root / name, count)
    with pytest.raises(error, match=message):
        make(root, cache, **changes)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "test"), ("train", "tEsT")])
def test_train_and_test_in_capitals_are_no_classes(root: Path, cache: Path, train: str, test: str) -> None:
    fill(root / train / "cat", 3)
    fill(root / test / "emu", 2, level=9)
    fill(root / "val" / "cat", 4)
    store = read(root, cache)
    assert store.classes == ["cat", "emu"]
    assert store.splits["train"].labels.tolist() == [0, 0, 0]
    assert store.splits["test"].labels.tolist() == [1, 1]
    assert store.splits["test"].images.unique().tolist() == [9]


def test_a_class_may_be_called_like_a_split_where_the_user_says_so(root: Path, cache: Path) -> None:
    for name in ("cat", "test"):
        fill(root / name, 2)
    assert read(root, cache, split="classes").classes == ["cat", "test"]


def test_what_programs_and_systems_leave_is_no_class(root: Path, cache: Path) -> None:
    for name in ("a", "b"):
        fill(root / name, 2)
        fill(root / name / ".ipynb_checkpoints", 1)
        fill(root / name / "more" / "__MACOSX" / "deeper", 1)
    fill(root / ".ipynb_checkpoints", 1)
    fill(root / "__MACOSX" / "train", 1)
    (root / "@eaDir").mkdir()
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    store = read(root, cache)
    assert store.classes == ["a", "b"]
    assert [len(split) for split in store.splits.values()] == [2, 2]


def test_linked_classes_and_files_count(root: Path, cache: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "cat", 3)
    fill(root / "dog", 2)
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "cat" / "0.png")
    store = read(root, cache)
    assert store.classes == ["cat", "dog"]
    assert [len(split) for split in store.splits.values()] == [3, 3]


def test_a_dangling_link_is_a_broken_file(root: Path, cache: Path) -> None:
    for name in ("a", "b"):
        fill(root / name, 2)
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(OSError, match=r"gone.png can't be decoded.*dataset.skip_broken=true"):
        read(root, cache)
    store = read(root, cache, skip_broken=True)
    assert len(store.splits["train"]) == 2
    assert "gone.png" in store.meta["left_out"][0]
    (root / "c").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"pets/c is a link to nothing"):
        make(root, cache)


@pytest.mark.parametrize("denied", ["", "a", "a/deep"])
def test_a_folder_that_cannot_be_read_is_named(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    """In place of permissions, which do not hold for root."""
    for name in ("a", "a/deep", "b"):
        fill(root / name, 1)

    def scandir(path: Any, scan: Any = os.scandir) -> Iterator[os.DirEntry[str]]:
        if Path(path) == root / denied:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=str(root / denied)):
        make(root, cache)
