import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from src.datamodules.store import class_balanced_draw, prepare_store, read_store, write_split
from tests.conftest import ROOT, small_store


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_round_trip(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)

    def build(folder: Path) -> dict[str, object]:
        write_split(folder, "train", zip(images, (0, 1, 1, -1, 0), strict=True))
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
        write_split(folder, "train", [(np.zeros((4, 4, 3), np.uint8), 0)] * 4)
        return {"classes": ["a"], "source": "here"}

    prepare_store(path, build)
    assert len(read_store(path).splits["train"]) == 4


def test_two_processes_at_once_build_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "store", tmp_path / "log")
    processes = [context.Process(target=_prepare_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


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
        ("meta.json", _truncate),
        ("meta.json", lambda path: path.write_text(json.dumps({"format": 0}))),
        ("meta.json", lambda path: path.write_text(json.dumps({"format": 1, "classes": []}))),
        ("meta.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_store_is_named_with_its_remedy(tmp_path: Path, file: str, damage: object) -> None:
    small_store(tmp_path / "store")
    damage(tmp_path / "store" / file)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"store {tmp_path / 'store'} is damaged .*delete .* to rebuild it"):
        read_store(tmp_path / "store")


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
