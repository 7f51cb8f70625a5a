"""Every published set from small originals in the true layouts on disk, Cars196 in all that circulate."""

import io
import os
import shutil
import signal
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from scipy.io import savemat

from src.datamodules.base import StoreDataModule
from src.datamodules.cars196 import Cars196
from src.datamodules.cub200 import CUB200
from src.datamodules.products import Products
from src.datamodules.published import unpack
from src.datamodules.stl10 import STL10
from src.datamodules.store import Store
from tests.conftest import Server, datamodule_options

LABELS = [0, 0, 1, 1, 1, 2, 3, 3, 3]  # four classes; the first two train
NAMES = ["AM General", "Acura RL", "BMW X3", "Ram C-V"]


def draw(path: Path, number: int) -> None:
    """A grey image that tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 12, 3), 20 * number, np.uint8)).save(path, quality=95)


def make(kind: type[StoreDataModule], root: Path, cache: Path, **changes: Any) -> StoreDataModule:
    published = {
        "archive": None,
        "urls": [],
        "checksum": None,
        "train_classes": 2,
        "counts": [5, 4],
        "size": 8,
        "resample": "lanczos",
        "skip_broken": False,
    }
    options = {"name": kind.__name__.lower(), "root": str(root), "gallery": False}
    return kind(**datamodule_options(cache, **options | (published if kind is not STL10 else {}) | changes))


def store(datamodule: StoreDataModule) -> Store:
    datamodule.prepare_data()
    datamodule.setup()
    assert datamodule.store is not None
    return datamodule.store


def assert_the_nine_images(found: Store) -> None:
    train, test = found.splits["train"], found.splits["test"]
    levels = np.concatenate([split.images[:, 4, 4, 0].numpy() for split in (train, test)]).astype(int)
    labels = train.labels.tolist() + test.labels.tolist()
    pairs = sorted(zip((levels / 20).round().astype(int).tolist(), labels, strict=True))
    assert pairs == list(enumerate(LABELS))
    assert train.labels.max() < test.labels.min()


def cub(root: Path) -> None:
    files = [f"{label + 1:03}.Bird/Bird_{number:04}_x.jpg" for number, label in enumerate(LABELS)]
    for number, name in enumerate(files):
        draw(root / "CUB_200_2011" / "images" / name, number)
    tables = {
        "images.txt": [f"{n + 1} {name}" for n, name in enumerate(files)],
        "image_class_labels.txt": [f"{n + 1} {label + 1}" for n, label in enumerate(LABELS)],
        "classes.txt": [f"{label + 1} {label + 1:03}.Bird" for label in range(4)],
    }
    for name, lines in tables.items():
        (root / "CUB_200_2011" / name).write_text("\n".join(lines) + "\n")


def products(root: Path) -> None:
    lists: dict[str, list[str]] = {"Ebay_train.txt": [], "Ebay_test.txt": []}
    for number, label in enumerate(LABELS):
        name = f"bicycle_final/{11000 + label}_{number}.JPG"
        draw(root / "Stanford_Online_Products" / name, number)
        lists["Ebay_train.txt" if label < 2 else "Ebay_test.txt"].append(f"{number + 1} {label + 1} 1 {name}")
    for name, lines in lists.items():
        heading = "image_id class_id super_class_id path"
        (root / "Stanford_Online_Products" / name).write_text("\n".join([heading, *lines]) + "\n")


def matlab(path: Path, rows: list[dict[str, Any]], **others: Any) -> None:
    """A struct array, as MATLAB writes one."""
    fields = dict.fromkeys(rows[0], object)
    table = np.zeros((1, len(rows)), dtype=[(name, kind) for name, kind in fields.items()])
    for column, row in enumerate(rows):
        for name, value in row.items():
            table[0, column][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": table, **others})


def class_names() -> np.ndarray:
    names = np.empty((1, 4), dtype=object)
    names[0] = NAMES
    return names


def cars_one_file(root: Path) -> None:
    rows = []
    for number, label in enumerate(LABELS):
        name = f"car_ims/{number + 1:06}.jpg"
        draw(root / name, number)
        box = {"bbox_x1": 1, "bbox_y1": 1, "bbox_x2": 5, "bbox_y2": 5}
        rows.append({"relative_im_path": name, **box, "class": label + 1, "test": number % 2})
    matlab(root / "cars_annos.mat", rows, class_names=class_names())


def cars_development_kit(root: Path, kit: str = "devkit", nested: str = "") -> None:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for number, label in enumerate(LABELS):
        split = ("train", "test")[number % 2]  # the kit's split cuts through the classes
        name = f"{len(rows[split]) + 1:05}.jpg"
        draw(root / f"cars_{split}" / nested.format(split) / name, number)
        rows[split].append({"bbox_x1": 1, "class": label + 1, "fname": name})
    matlab(root / kit / "cars_train_annos.mat", rows["train"])
    matlab(root / kit / "cars_test_annos_withlabels.mat", rows["test"])
    savemat(root / kit / "cars_meta.mat", {"class_names": class_names()})


def cars_kit_nested(root: Path) -> None:
    cars_development_kit(root, "car_devkit/devkit", "cars_{}")


def cars_class_folders(root: Path) -> None:
    for number, label in enumerate(LABELS):
        draw(root / NAMES[label] / f"{number}.jpg", number)


def cars_class_folders_in_two(root: Path) -> None:
    for number, label in enumerate(LABELS):
        draw(root / "car_data" / ("train", "test")[number % 2] / NAMES[label] / f"{number}.jpg", number)


@pytest.mark.parametrize(
    ("kind", "lay"),
    [
        (CUB200, cub),
        (Products, products),
        (Cars196, cars_one_file),
        (Cars196, cars_development_kit),
        (Cars196, cars_kit_nested),
        (Cars196, cars_class_folders),
        (Cars196, cars_class_folders_in_two),
    ],
)
def test_layouts(kind: type[StoreDataModule], lay: Callable[[Path], None], tmp_path: Path) -> None:
    lay(tmp_path / "original")
    found = store(make(kind, tmp_path / "original", tmp_path / "cache"))
    assert_the_nine_images(found)
    if kind is Cars196:
        assert found.classes == NAMES
    with pytest.raises(OSError, match=r"has 5 training and 4 test images, published are 5,864 and 5,924"):
        make(kind, tmp_path / "original", tmp_path / "other", counts=[5864, 5924]).prepare_data()


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    cub(tmp_path)
    next(tmp_path.rglob("*_0003_x.jpg")).unlink()
    with pytest.raises(OSError, match=r"1 of 9 images are missing, first .*_0003_x.jpg"):
        make(CUB200, tmp_path, tmp_path / "cache").prepare_data()


def test_test_labels_of_the_kit_are_asked_for(tmp_path: Path) -> None:
    cars_development_kit(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").rename(tmp_path / "cars_test_annos_withlabels.mat")
    assert_the_nine_images(store(make(Cars196, tmp_path, tmp_path / "cache")))
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(OSError, match=r"cars_test_annos_withlabels.mat is missing"):
        make(Cars196, tmp_path, tmp_path / "other").prepare_data()


def packed(folder: Path, archive: Path) -> str:
    import hashlib

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"


def test_an_archive_is_downloaded_from_the_second_address(server: Server, tmp_path: Path) -> None:
    cub(tmp_path / "made")
    checksum = packed(tmp_path / "made" / "CUB_200_2011", tmp_path / "CUB.tgz")
    server.files["CUB.tgz"] = (tmp_path / "CUB.tgz").read_bytes()
    urls = [f"{server.url}/gone.tgz", f"{server.url}/CUB.tgz"]
    options = {"archive": "CUB.tgz", "urls": urls, "checksum": checksum}
    assert_the_nine_images(store(make(CUB200, tmp_path / "root", tmp_path / "cache", **options)))


def test_absent_originals_are_asked_for(server: Server, tmp_path: Path) -> None:
    options = {"archive": "CUB.tgz", "urls": [f"{server.url}/gone.tgz"], "checksum": "md5:0"}
    with pytest.raises(
        OSError, match=r"Put CUB.tgz \(md5:0\) into .*root, or its content: a folder CUB_200_2011.*Not Found"
    ):
        make(CUB200, tmp_path / "root", tmp_path / "cache", **options).prepare_data()
    with pytest.raises(OSError, match=r"no address is known. Put into .*root: car_ims/ with cars_annos.mat"):
        make(Cars196, tmp_path / "root", tmp_path / "cache").prepare_data()
    assert not (tmp_path / "cache" / "cub200").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"evil.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("../escaped.txt")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../escaped.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"evil.* can't be unpacked .*escaped.txt"):
        unpack(path, tmp_path / "folder")
    assert not (tmp_path / "escaped.txt").exists()
    path.write_bytes(b"no archive")
    with pytest.raises(OSError, match=r"evil.* can't be unpacked"):
        unpack(path, tmp_path / "folder")


def test_other_options_are_another_store(tmp_path: Path) -> None:
    """Each has the classes and images that its own options say, whichever came first."""
    cub(tmp_path / "original")
    cub(tmp_path / "other")
    options: dict[str, Any]
    counted, free = [5, 4], {"counts": None}
    for options, train in (({}, 5), ({"train_classes": 3, **free}, 6), (free, 5), ({"counts": counted}, 5)):
        made = make(CUB200, tmp_path / "original", tmp_path / "cache", **options)
        assert len(store(made).splits["train"]) == train
    path = make(CUB200, tmp_path / "original", tmp_path / "cache").path
    assert make(CUB200, tmp_path / "other", tmp_path / "cache").path == path, "the published images are the same"
    for options in ({"size": 16}, {"resample": "bilinear"}, {"skip_broken": True}, free):
        assert make(CUB200, tmp_path / "original", tmp_path / "cache", **options).path != path
    places = {make(CUB200, tmp_path / name, tmp_path / "cache", **free).path for name in ("original", "other")}
    assert len(places) == 2


def test_an_original_is_fetched_by_one_at_a_time(tmp_path: Path) -> None:
    """Also where two stores are made of it, whose own locks are not the same."""
    cub(tmp_path / "made")
    (tmp_path / "root").mkdir()
    checksum = packed(tmp_path / "made" / "CUB_200_2011", tmp_path / "root" / "CUB.tgz")
    datamodule = make(CUB200, tmp_path / "root", tmp_path / "cache", archive="CUB.tgz", checksum=checksum)
    thread = threading.Thread(target=datamodule.prepare_data)
    with FileLock(tmp_path / "root" / ".CUB.tgz.lock"):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not (tmp_path / "root" / "CUB_200_2011").exists()
    thread.join()
    assert_the_nine_images(store(datamodule))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_unpacking_that_was_cut_off_leaves_nothing_that_looks_like_the_whole(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / "made" / "set" / name).mkdir(parents=True)
        (tmp_path / "made" / "set" / name / "image").write_text(name)
    path = Path(shutil.make_archive(str(tmp_path / "set"), kind, tmp_path / "made"))
    root = tmp_path / "root"
    (root / "set").mkdir(parents=True)
    (root / "set" / "mine").touch()
    extracted = list[str]()

    def fail(*given: Any, **named: Any) -> Any:
        extracted.append("one")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj" if kind == "zip" else "tarfile.copyfileobj", fail)
        with pytest.raises(KeyboardInterrupt):
            unpack(path, root)
    assert extracted
    assert [found.name for found in root.rglob("*")] == ["set", "mine"]
    (root / f".{path.name}.partial" / "set" / "one").mkdir(parents=True)  # what SIGKILL leaves
    unpack(path, root)
    assert sorted(found.name for found in root.rglob("*")) == ["image", "image", "mine", "one", "set", "two"]
    assert [(root / "set" / name / "image").read_text() for name in ("one", "two")] == ["one", "two"]


def stl(root: Path, counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Planes, columns before rows, labels from 1: as the binary files are."""
    rng = np.random.default_rng(0)
    binary = root / "stl10_binary"
    binary.mkdir(parents=True)
    images = {}
    for part, count in counts.items():
        images[part] = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        images[part].transpose(0, 3, 2, 1).tofile(binary / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 3 + 1).tofile(binary / f"{part}_y.bin")
    (binary / "class_names.txt").write_text("airplane\nbird\ncar\n")
    return images


@pytest.mark.parametrize("split", ["train", "train+unlabeled"])
def test_stl10(tmp_path: Path, split: str) -> None:
    counts = {"train": 6, "unlabeled": 9, "test": 4}
    images = stl(tmp_path, counts)
    options = {"url": "http://127.0.0.1:9/stl10.tar.gz", "checksum": "md5:0", "counts": counts, "split": split}
    datamodule = make(STL10, tmp_path, tmp_path / "cache", gallery=True, **options)
    found = store(datamodule)
    train = np.concatenate([images[part] for part in ("train", "unlabeled")[: 1 if split == "train" else 2]])
    assert np.array_equal(found.splits["train"].images.numpy(), train)
    assert np.array_equal(found.splits["test"].images.numpy(), images["test"])
    labels = [0, 1, 2, 0, 1, 2]
    assert found.splits["train"].labels.tolist() == labels + [-1] * (len(train) - 6)
    assert found.splits["test"].labels.tolist() == [0, 1, 2, 0]
    # The unlabelled are trained on, and never searched.
    assert len(datamodule.train_labels) == len(train)
    assert datamodule.gallery_labels is not None
    assert datamodule.gallery_labels.tolist() == labels
    for fits in (False, True):  # but a whitening is fitted to them too
        datamodule.fits = fits
        _, handed = datamodule.val_dataloader()
        expected = found.splits["train"].labels.tolist() if fits else labels
        assert [label for batch in handed for label in batch["label"].tolist()] == expected
    wrong = make(STL10, tmp_path, tmp_path / "other", **options | {"counts": counts | {"train": 7}})
    with pytest.raises(OSError, match=r"train_X.bin has 165,888 bytes, not 7 images"):
        wrong.prepare_data()
    with pytest.raises(OSError, match=r"refused.*or put the archive, or what is in it, into"):
        make(STL10, tmp_path / "none", tmp_path / "other", **options).prepare_data()


def damage(path: Path, rng: np.random.Generator) -> None:
    """Cut a file short, or change some of its bytes."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        content = content[: rng.integers(len(content))]
    for _ in range(int(rng.choice([1, 3, 20]))):
        if content:
            content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "write", "lists", "times"),
    [
        (
            CUB200,
            cub,
            ["CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt", "CUB_200_2011/classes.txt"],
            150,
        ),
        (Products, products, [f"Stanford_Online_Products/Ebay_{split}.txt" for split in ("train", "test")], 150),
        (Cars196, cars_one_file, ["cars_annos.mat"], 4),
    ],
)
def test_damaged_lists_are_named(
    tmp_path: Path, kind: type[StoreDataModule], write: Callable[[Path], None], lists: list[str], times: int
) -> None:
    """Whatever is in them: the images come out, or one error that names the set."""
    write(tmp_path / "original")
    whole = {name: (tmp_path / "original" / name).read_bytes() for name in lists}
    rng, refused = np.random.default_rng(times), 0  # with some damage scipy reads on for a minute before it gives up
    for number in range(times):
        for name, content in whole.items():
            (tmp_path / "original" / name).write_bytes(content)
        damage(tmp_path / "original" / lists[number % len(lists)], rng)
        datamodule = make(kind, tmp_path / "original", tmp_path / f"cache{number}")
        try:
            store(datamodule)
        except OSError as error:
            said = str(error)
        else:
            continue
        refused += 1
        assert len(said.splitlines()) == 1
        assert kind.__name__.lower() in said
    assert refused > times / 4


def test_a_list_names_no_file_outside(tmp_path: Path) -> None:
    cub(tmp_path / "original")
    draw(tmp_path / "outside.jpg", 1)
    table = tmp_path / "original" / "CUB_200_2011" / "images.txt"
    whole = table.read_text()
    for name in ("../../../outside.jpg", str(tmp_path / "outside.jpg")):
        table.write_text(whole.replace("001.Bird/Bird_0000_x.jpg", name))
        with pytest.raises(OSError, match=r"its lists name .*outside.jpg of class 1 of 4"):
            store(make(CUB200, tmp_path / "original", tmp_path / "cache"))


def _crash(path: Path, squeeze_me: bool) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_reader_that_crashes_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cars_one_file(tmp_path / "original")
    monkeypatch.setattr("src.datamodules.cars196.loadmat", _crash)
    with pytest.raises(OSError, match=r"the lists of cars196 in .* are damaged \(BrokenProcessPool"):
        store(make(Cars196, tmp_path / "original", tmp_path / "cache"))
