import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.datamodules import store as store_module
from src.datamodules.draws import class_balanced_draw, hold_out
from src.datamodules.store import first_copies, prepare_store, read_store, write_split
from tests.conftest import ROOT, small_store


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_round_trip(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)

    def build(folder: Path) -> dict[str, object]:
        write_split(folder, "train", zip(images, (0, 1, 1, -1, 0), strict=True))
        write_split(folder, "test", zip(images[:2], (1, 0), strict=True))
        return {"classes": ["cat", "dog"], "source": "here"}

    prepare_store(tmp_path / "pets", build)
    store = read_store(tmp_path / "pets")
    assert np.array_equal(store.splits["train"].images.numpy(), images)
    assert store.splits["train"].labels.tolist() == [0, 1, 1, -1, 0]
    assert store.classes == ["cat", "dog"]
    assert store.meta["source"] == "here"
    assert leftovers(tmp_path) == ["pets"]


def test_a_complete_store_is_not_built_again(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    prepare_store(tmp_path / "store", lambda folder: pytest.fail("built twice"))


@pytest.mark.parametrize("error", [OSError("source gone"), ValueError("odd"), KeyboardInterrupt()])
def test_a_failing_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(folder: Path) -> dict[str, object]:
        write_split(folder, "train", [(np.zeros((4, 4, 3), np.uint8), 0)])
        raise error

    with pytest.raises(type(error)):
        prepare_store(tmp_path / "store", build)
    assert leftovers(tmp_path) == []
    small_store(tmp_path / "store")
    assert len(read_store(tmp_path / "store").splits["train"]) == 20


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".store.partial").mkdir()
    (tmp_path / ".store.partial" / "old_images.npy").write_bytes(b"half")
    small_store(tmp_path / "store")
    assert sorted(read_store(tmp_path / "store").splits) == ["test", "train"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A process that may write no more than 100 kB a file stands in for a full disk: the write fails half-way."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from tests.conftest import small_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "small_store(Path(sys.argv[1]), train=500, size=32)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode != 0
    assert f"the store {tmp_path / 'store'} was not built and nothing is left of it" in result.stderr
    assert leftovers(tmp_path) == []


def _prepare_slowly(path: Path, log: Path) -> None:
    def build(folder: Path) -> dict[str, object]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(1)
        for split in ("train", "test"):
            write_split(folder, split, [(np.zeros((4, 4, 3), np.uint8), 0)] * 4)
        return {"classes": ["a"], "source": "here"}

    prepare_store(path, build)
    assert len(read_store(path).splits["train"]) == 4


def test_three_processes_at_once_build_one_store(tmp_path: Path, forkserver: Any) -> None:
    arguments = (tmp_path / "store", tmp_path / "log")
    processes = [forkserver.Process(target=_prepare_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _replace(**changes: object) -> Callable[[Path], None]:
    """Change entries of `meta.json`; `...` removes one."""

    def damage(path: Path) -> None:
        meta = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in meta.items() if value is not ...}))

    return damage


def _resplit(**changes: object) -> Callable[[Path], None]:
    return _replace(splits={"train": [20, 8, 8, 3], "test": [11, 8, 8, 3]} | changes)


def _in_place_of(path: Path, name: str) -> None:
    path.unlink()
    (path / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_images.npy", _truncate),
        ("train_images.npy", lambda path: path.write_bytes(b"")),
        ("train_images.npy", lambda path: path.write_bytes(b"not numpy" * 100)),
        ("train_images.npy", lambda path: path.unlink()),
        ("train_images.npy", lambda path: np.save(path, np.zeros((20, 8, 8, 3)))),
        ("test_labels.npy", _truncate),
        ("test_labels.npy", lambda path: np.save(path, np.full(11, 9))),
        ("test_labels.npy", lambda path: np.save(path, np.zeros(10, np.int64))),
        ("test_labels.npy", lambda path: np.save(path, np.zeros(11))),
        ("test_labels.npy", lambda path: np.save(path, np.zeros(11, np.int32))),
        ("test_labels.npy", lambda path: np.save(path, np.zeros(11, ">i8"))),
        ("test_labels.npy", lambda path: np.save(path, np.int64(0))),
        ("test_labels.npy", lambda path: np.save(path, np.full(11, -2))),
        ("test_labels.npy", lambda path: path.write_bytes(b"PK\3\4 no archive")),
        ("test_labels.npy", lambda path: np.savez(path.open("wb"), np.zeros(11, np.int64))),
        ("test_labels.npy", lambda path: _in_place_of(path, "folder")),
        ("test_images.npy", lambda path: np.save(path, np.zeros((0, 8, 8, 3), np.uint8))),
        ("test_images.npy", lambda path: path.unlink()),
        ("train_images.npy", lambda path: np.save(path, np.zeros((20, 8, 3, 8), np.uint8))),
        ("meta.json", _truncate),
        ("meta.json", lambda path: path.write_text(json.dumps({"format": 0}))),
        ("meta.json", lambda path: path.write_text(json.dumps({"format": 1, "classes": []}))),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", lambda path: path.write_text("1")),
        ("meta.json", lambda path: path.write_text("[" * 100_000)),
        ("meta.json", lambda path: path.write_bytes(b"\xff\xfe{}")),
        ("meta.json", lambda path: path.write_text(json.dumps("x" * 10_000))),
        ("meta.json", _replace(format=[1])),
        ("meta.json", _replace(format="1\n2")),
        ("meta.json", _replace(classes="abc")),
        ("meta.json", _replace(classes={"a": 0, "b": 1, "c": 2})),
        ("meta.json", _replace(classes=["a", "b", 3])),
        ("meta.json", _replace(classes=[["a"], ["b"], ["c"]])),
        ("meta.json", _replace(classes=...)),
        ("meta.json", _replace(splits=...)),
        ("meta.json", _replace(splits=[])),
        ("meta.json", _replace(splits={"train": [20, 8, 8, 3]})),
        ("meta.json", _replace(splits={"../train": [20, 8, 8, 3], "../test": [11, 8, 8, 3]})),
        ("meta.json", _resplit(test=[11.0, 8, 8, 3])),
        ("meta.json", _resplit(test="[11, 8, 8, 3]")),
        ("meta.json", _resplit(test=[])),
        ("meta.json", _resplit(test=None)),
        ("meta.json", _resplit(test={"a": [[]]})),
        ("meta.json", _resplit(test=[12, 8, 8, 3])),
    ],
)
def test_a_damaged_store_is_named_with_its_remedy(tmp_path: Path, file: str, damage: object) -> None:
    small_store(tmp_path / "store")
    damage(tmp_path / "store" / file)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"store {tmp_path / 'store'} is damaged .*delete .* to rebuild it") as caught:
        read_store(tmp_path / "store")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300 + 2 * len(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((0, 8, 8, 3), "no images"), ((11, 0, 8, 3), "no images"), ((11, 8, 8, 4), "images uint8"), ((11,), "images")],
)
def test_a_split_without_images_is_named(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    """However well its parts agree."""
    small_store(tmp_path / "store")
    np.save(tmp_path / "store" / "test_images.npy", np.zeros(shape, np.uint8))
    np.save(tmp_path / "store" / "test_labels.npy", np.zeros(shape[0], np.int64))
    _resplit(test=list(shape))(tmp_path / "store" / "meta.json")
    with pytest.raises(ValueError, match=rf"damaged \(test: {message}"):
        read_store(tmp_path / "store")


def test_nothing_outside_of_a_store_is_read(tmp_path: Path) -> None:
    """`meta.json` may be a stranger's: the splits have fixed names, and no other is looked for."""
    small_store(tmp_path / "store")
    small_store(tmp_path / "other")
    _resplit(**{"../other/train": [20, 8, 8, 3], "validation": "none"})(tmp_path / "store" / "meta.json")
    assert list(read_store(tmp_path / "store").splits) == ["train", "test"]


def test_a_store_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store(tmp_path / "store")

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError, match=r"train_images.npy"):
        read_store(tmp_path / "store")


def test_equal_images_are_found_wherever_they_are() -> None:
    """Against a comparison of all pairs; some differ only outside of the middle line, which is looked at first."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (12, 6, 4, 3), dtype=np.uint8)
    kinds[6:, 3] = kinds[0, 3]
    kinds[7, 0, 0, 0] = kinds[6, 0, 0, 0] + 1
    images = kinds[rng.integers(0, 12, 40)]
    parts = [torch.from_numpy(part) for part in (images[:23], images[23:24], images[24:])]
    found = first_copies(*parts)
    assert [len(part) for part in found] == [23, 1, 16]
    expected = [next(j for j in range(40) if np.array_equal(images[i], images[j])) for i in range(40)]
    assert torch.cat(found).tolist() == expected
    assert len(set(expected)) > 8


def test_different_images_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_store(tmp_path / "store")
    digested = []

    def digest(pixels: np.ndarray, real: Callable[[np.ndarray], bytes] = store_module._digest) -> bytes:
        digested.append(pixels.size)
        return real(pixels)

    monkeypatch.setattr(store_module, "_digest", digest)
    first_copies(*(split.images for split in read_store(tmp_path / "store").splits.values()))
    assert set(digested) == {8 * 3}


def test_labels_are_never_unpickled(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    np.save(tmp_path / "store" / "test_labels.npy", np.array([{"a": 1}] * 11), allow_pickle=True)
    with pytest.raises(ValueError, match="damaged"):
        read_store(tmp_path / "store")


def test_a_missing_store_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no store"):
        read_store(tmp_path / "store")
    (tmp_path / "store").mkdir()
    with pytest.raises(FileExistsError, match=r"meta.json is missing"):
        small_store(tmp_path / "store")


def test_write_split_refuses_other_shapes(tmp_path: Path) -> None:
    right = np.zeros((4, 4, 3), np.uint8)
    for image in (right.astype(float), right.transpose(2, 0, 1), right[..., 0], right[:3]):
        with pytest.raises(ValueError, match="need uint8 images"):
            write_split(tmp_path, "train", [(right, 0), (image, 0)])
    with pytest.raises(OSError, match="the test split has no image"):
        write_split(tmp_path, "test", [])


def test_balanced_draw() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)
    drawn = class_balanced_draw(labels, 12)
    assert labels[drawn].bincount().tolist() == [5, 4, 3]
    assert class_balanced_draw(labels, 83).tolist() == list(range(83))
    assert set(drawn.tolist()) < set(class_balanced_draw(labels, 40).tolist())
    for count in (0, 84):
        with pytest.raises(ValueError, match=f"dataset.limit={count}.*1 to 83"):
            class_balanced_draw(labels, count)


def test_held_out_images_are_drawn_evenly_and_every_class_keeps_one() -> None:
    labels = torch.tensor([-1] * 7 + [0] * 50 + [1] * 30 + [2] * 3 + [3])
    held = hold_out(labels, 0.2, classes=False)
    assert held.dtype == torch.bool
    assert held.shape == labels.shape
    assert not held[labels < 0].any()
    assert labels[held].bincount().tolist() == [8, 7, 2], "17 of 84, and one image of each class is kept"
    torch.manual_seed(5)
    assert torch.equal(hold_out(labels, 0.2, classes=False), held), "one draw for every run"
    assert not (held & ~hold_out(labels, 0.3, classes=False)).any(), "a smaller share is part of a larger one"
    most = hold_out(labels, 80 / 84, classes=False)
    assert labels[~most].tolist() == [-1] * 7 + [0, 1, 2, 3]
    assert hold_out(labels, 1 / 84, classes=False).sum() == 1


def test_held_out_classes_are_whole() -> None:
    labels = torch.cat([torch.arange(10).repeat_interleave(torch.arange(1, 11)) + 3, torch.tensor([-1, -1])])
    for share, count in ((0.3, 3), (0.01, 2), (0.94, 9)):
        held = hold_out(labels, share, classes=True)
        classes = labels[held].unique()
        assert len(classes) == count
        assert torch.equal(held, torch.isin(labels, classes))
        assert classes.min() >= 0
        torch.manual_seed(count)
        assert torch.equal(hold_out(labels, share, classes=True), held), "one draw for every run"
    assert classes.tolist() != list(range(3, 12)), "not merely the first"
    assert not (hold_out(labels, 0.3, classes=True) & ~held).any(), "a smaller share is part of a larger one"


@pytest.mark.parametrize(
    ("labels", "share", "classes", "message"),
    [
        ([-1, -1], 0.5, False, "dataset.validation=0.5: no training image has a label"),
        ([-1, -1], 0.5, True, "dataset.validation=0.5: no training image has a label"),
        ([0, 0, 0, 1, 1, -1], 0.05, False, "dataset.validation=0.05: holds out 0 of 5 .* at least 1, and at most 3"),
        ([0, 0, 0, 1, 1, -1], 0.8, False, "holds out 4 of 5 labelled .* at most 3, .* each of the 2 classes"),
        ([0, 1, 2], 0.4, False, "holds out 1 of 3 labelled .* at most 0, "),
        ([0, 0, 1, 1, -1], 0.1, True, "dataset.validation=0.1: holds out 2 of 2 training classes, .* leaves none"),
        ([0, 1, 2, 3], 0.9, True, "holds out 4 of 4 training classes"),
    ],
)
def test_what_cannot_be_held_out_is_named(labels: list[int], share: float, classes: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold_out(torch.tensor(labels), share, classes)
