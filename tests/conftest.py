"""Shared fixtures: a loopback web server, a small store, and the entry points run as a user runs them."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import normalize

from src.augmentations.random import Augmentation
from src.datamodules.store import prepare_store, write_split
from src.running import signals
from tests.forking import ROOT, become

if "PYTEST_XDIST_WORKER" in os.environ:  # processes beside each other: a thread for each, also of what they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs whole commands comes first: the last tests are then short, and no process waits long for another."""
    items.sort(key=lambda item: item.path.parent != ROOT / "tests")


def pytest_collection_finish() -> None:
    """What is imported stays: looking for what of it can go takes a quarter of a second each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process takes signals as a command does, until the test is over."""
    before = {number: signal.getsignal(number) for number in signals.NUMBERS}
    monkeypatch.setattr(signals, "_asked", 0)
    monkeypatch.setattr(signals, "_instead", None)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """As a shell starts what runs in the background, Ctrl-C is ignored, and so by every process that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Server:
    """Files by name; `cut[name]` breaks the first answer off after so many bytes; `asked` is the log of ranges."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            state.asked.append(self.headers.get("Range"))
            if name not in state.files:
                self.send_error(404)
                return
            content = state.files[name]
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = state.cut.pop(name, len(content))
            self.wfile.write(content[start:stop])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()


def small_store(
    path: Path, train: int = 20, test: int = 11, classes: int = 3, size: int = 8, unseen: bool = False
) -> None:
    """A store of noise; `unseen`: the test images are of other classes, as many."""
    rng = np.random.default_rng(0)

    def build(folder: Path) -> dict[str, object]:
        for split, count in (("train", train), ("test", test)):
            images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            labels = np.arange(count) % classes + classes * (unseen and split == "test")
            write_split(folder, split, zip(images, labels, strict=True))
        return {"classes": [str(c) for c in range(classes * (1 + unseen))], "source": "noise"}

    prepare_store(path, build)


def datamodule_options(cache: Path, **changes: Any) -> dict[str, Any]:
    """What every datamodule is made with, small; `changes` replace or add."""
    options: dict[str, Any] = {
        "name": "store",
        "cache_dir": str(cache),
        "image_size": 8,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "batch_size": 4,
        "eval_batch_size": 6,
        "limit": None,
        "view_milestones": [],
        "view_sizes": [],
        "gallery": True,
        "resident": "auto",
        "augmentation": Augmentation(8),
        "seed": 0,
    }
    return options | changes


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, centred, unit norm, float64 `(1797, 64)`; and their labels."""
    data = load_digits()
    points = torch.tensor(data.data)
    return normalize(points - points.mean(0), dim=1), torch.tensor(data.target)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if not (path := shutil.which("chromium")):
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cache(shared_folder: Path) -> Path:
    """One cache of stores for all the tests that run the entry points."""
    return shared_folder / "cache"


@pytest.fixture(scope="session", autouse=True)
def forkserver() -> Any:
    """Forks processes from one that has imported torch and the like, which takes seconds, but nothing of ours."""
    context = multiprocessing.get_context("forkserver")
    preload = ["torch", "torchvision", "pytorch_lightning", "torchmetrics", "matplotlib.figure", "wandb", "hydra"]
    context.set_forkserver_preload([*preload, "sklearn.datasets", "sklearn.model_selection", "rich.progress"])
    return context


@dataclass
class Started:
    """A command that may still be running."""

    process: Any
    place: Any  # a temporary folder, of what it says

    @property
    def output(self) -> str:
        """What it has said so far."""
        return (Path(self.place.name) / "output").read_text()

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self, within: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for its end; it is killed if that takes too long."""
        self.process.join(within)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired(self.process.name, within)
        said = [(Path(self.place.name) / name).read_text() for name in ("output", "errors")]
        self.place.cleanup()
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, *said)


Begin = Callable[..., Started]


@pytest.fixture(scope="session")
def begin(forkserver: Any) -> Begin:
    """Start `python -m MODULE ARGUMENTS` in the checkout, with these variables besides the environment's."""

    def call(module: str, *arguments: str, **environment: str) -> Started:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
        place = tempfile.TemporaryDirectory()
        said = [f"{place.name}/{name}" for name in ("output", "errors")]
        for path in said:
            Path(path).touch()
        env = inherited | {"COLUMNS": "200"} | environment
        process = forkserver.Process(target=become, args=(module, list(arguments), env, *said), name=module)
        process.start()
        return Started(process, place)

    return call


@pytest.fixture(scope="session")
def command(begin: Begin) -> Run:
    """Call a command as `begin` starts it."""
    return lambda *told, **environment: begin(*told, **environment).ended()


@pytest.fixture
def run(cache: Path, tmp_path: Path, command: Run) -> Run:
    """The same without W&B credentials of the machine's, and with a cache of the tests'."""

    def call(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(module, *arguments, **{"ISIF_CACHE": str(cache), "HOME": str(tmp_path)} | environment)

    return call


@pytest.fixture(scope="session")
def trained(shared_folder: Path, cache: Path, command: Run) -> Path:
    """The folder of a run, made once: an epoch of few digits, in float32, so that no neighbour changes places."""
    folder = shared_folder / "trained"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.json").exists():
            few = ["backbone=resnet18_slim", "dataset.limit=300", "protocol.metrics.knn.k=20", "trainer.max_epochs=1"]
            quiet = ["trainer.precision=32-true", "trainer.accelerator=cpu", "logger=none", "callbacks.pictures=null"]
            done = command("src.train", *few, *quiet, f"run_dir={folder}", ISIF_CACHE=str(cache), HOME=str(folder))
            assert done.returncode == 0, done.stderr
    return folder


def write_digits(store: Path, folder: Path, count: int) -> list[Path]:
    """The first test images of a store as PNG files, which hold the same pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(np.load(store / "test_images.npy", mmap_mode="r")[:count]):
        paths.append(folder / f"{number:04}.png")
        Image.fromarray(np.array(image)).save(paths[-1])
    return paths
