"""What a training step and an evaluation cost, counted rather than timed, so that they stay cheap."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.backbones.inception import GoogLeNet
from src.backbones.resnet import resnet18, resnet50
from src.callbacks.progress import Progress
from src.callbacks.refresh import Refresh
from src.callbacks.throughput import Throughput
from src.train import assemble

ROOT = Path(__file__).parent.parent
METHODS = sorted({path.stem for path in (ROOT / "conf/method").glob("*.yaml")} - {"untrained"})


class Count(TorchDispatchMode):
    """Calls of each torch operator, and the bytes that copies write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if func.overloadpacket.__name__ in ("_to_copy", "clone", "copy_", "cat", "index", "index_select"):
            self.copied += result.nbytes
        return result


class CountStep(pl.Callback):
    """Counts from the end of step 2 to the end of step 3: one whole step, at which nothing is logged."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.count = Count()
            self.count.__enter__()
        if batch_idx == 2:
            self.count.__exit__(None, None, None)
            self.views = batch["views"].nbytes


@pytest.fixture(scope="module")
def config_dir() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def count_step(cache: Path, *overrides: str) -> CountStep:
    config = compose("train", [f"cache_dir={cache}", "dataset.batch_size=64", *overrides])
    datamodule, module, _ = assemble(config, 1)
    counter = CountStep()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[Refresh(0), Throughput(), Progress(), counter],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        max_steps=4,
        log_every_n_steps=4,
    )
    trainer.fit(module, datamodule)
    return counter


@pytest.mark.usefixtures("config_dir")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait_for_the_device(cache: Path, method: str) -> None:
    """Reading a number, or a size that depends on numbers, would let an accelerator run dry."""
    counter = count_step(cache, f"method={method}", "method.clusters=10" if method == "deepcluster" else "seed=0")
    calls = counter.count.calls
    assert calls["convolution_backward"] > 0, "a whole step was counted"
    waits = {name: calls[name] for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")}
    print(waits)


@pytest.mark.usefixtures("config_dir")
def test_a_step_decodes_nothing_and_copies_little(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_step(cache)

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded while training")

    monkeypatch.setattr(Image, "open", decode)
    counter = count_step(cache)
    print(counter.count.copied / counter.views, counter.count.calls)


@pytest.mark.parametrize("network", [resnet18(8), resnet50(8), GoogLeNet()])
def test_networks_compile_whole(network: nn.Module) -> None:
    size = 224 if isinstance(network, GoogLeNet) else 32
    explained = torch._dynamo.explain(network)(torch.randn(2, 3, size, size))
    assert explained.graph_count == 1, explained.break_reasons


PRODUCTS = """
import resource, torch
from src.metrics.clustering import Clustering
from src.metrics.retrieval import Retrieval

def evaluate(images, classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, 128, generator=generator)
    points = centres[labels] + torch.randn(images, 128, generator=generator)
    points = torch.nn.functional.normalize(points, dim=1)
    for metric in (Retrieval((1, 10, 100)), Clustering(restarts=1)):
        metric.update(points, labels)
        assert 0 < min(metric.compute().values()) <= 100

evaluate(500, 100)  # what the first call loads does not count
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(60_502, 11_316)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in Linux's units")
def test_evaluation_at_the_size_of_products_fits_into_a_gibibyte() -> None:
    """All pairs of its 60,502 images would take 14 GiB; its embeddings take 30 MiB."""
    result = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1024
