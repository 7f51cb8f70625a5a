"""What a training step and an evaluation cost, counted rather than timed, so that they stay cheap."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.assemble import assemble
from src.augmentations.functional import normalize
from src.backbones.inception import GoogLeNet
from src.backbones.resnet import resnet18, resnet50
from src.callbacks.progress import Progress
from src.callbacks.refresh import Refresh
from src.callbacks.steps import Steps
from src.methods.base import TaughtMethod

ROOT = Path(__file__).parent.parent
# All that learn, but for the losses of pytorch-metric-learning, which do read the device.
METHODS = sorted({path.stem for path in (ROOT / "conf/method").glob("*.yaml")} - {"untrained", "supervised"})


class Count(TorchDispatchMode):
    """Calls of each torch operator, and the bytes that copies write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.copied = self.sent = self.waited = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if func.overloadpacket.__name__ == "_to_copy" and args[0].device != result.device:
            self.sent += 1
            self.waited += not (kwargs or {}).get("non_blocking")
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


def configure(cache: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [f"cache_dir={cache}", "dataset.batch_size=64", *overrides])


@pytest.fixture
def step(cache: Path, monkeypatch: pytest.MonkeyPatch) -> CountStep:
    """A step of the default run, in which nothing may be decoded."""
    datamodule, module, _ = assemble(configure(cache), 1)

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded while training")

    monkeypatch.setattr(Image, "open", decode)
    step = CountStep()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[Refresh(0), Steps(), Progress(), step],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        max_steps=4,
        log_every_n_steps=4,
    )
    trainer.fit(module, datamodule)
    return step


def test_a_step_reads_no_number_and_copies_little(step: CountStep) -> None:
    """An accelerator would have to be waited for. The one number read is of the crops, which are drawn on the host."""
    assert step.count.calls["convolution_backward"] > 0, "a whole step was counted"
    assert step.count.calls["_local_scalar_dense"] <= 1
    # The gather, the two draws of views and their layout.
    assert step.count.copied < 6 * step.views


def test_augmentation_does_not_read_the_device(cache: Path) -> None:
    """Images on torch's meta device have no numbers: to read one is an error."""
    augmentation = instantiate(configure(cache, "augmentation=full").augmentation)
    images = torch.empty(8, 32, 32, 3, dtype=torch.uint8, device="meta")

    def finish(views: torch.Tensor) -> torch.Tensor:
        return normalize(views, torch.ones(3), torch.ones(3))

    with Count() as count:
        assert augmentation(images, torch.Generator(), finish).shape == (8, 3, 32, 32)
    assert count.sent > 0
    assert count.waited == 0, "what is sent to the device, the host does not wait for"


@pytest.mark.parametrize("name", METHODS)
def test_methods_do_not_read_the_device(cache: Path, name: str) -> None:
    few = ["method.clusters=10"] if name == "deepcluster" else []
    datamodule, module, _ = assemble(configure(cache, f"method={name}", *few), 1)
    method, images = module.method, len(datamodule.train_labels)
    features = nn.functional.normalize(torch.randn(images, 128), dim=1)
    companions = method.on_epoch_start(lambda kind="unit": (features, features), torch.Generator())
    method.to("meta")
    views = method.views if companions is None else companions.shape[1]
    embeddings = torch.empty(8 * views, 128, device="meta", requires_grad=True)
    index = torch.arange(8, device="meta")
    num_features: Any = module.backbone.num_features
    wide = torch.empty(8 * views, num_features, device="meta", dtype=torch.bfloat16)
    given = {"features": wide, "teacher": (wide, embeddings.detach())} if isinstance(method, TaughtMethod) else {}
    method(embeddings, index, **given)["loss"].backward()
    method.after_step(embeddings.detach(), index)
    assert embeddings.grad is not None


@pytest.mark.parametrize("network", [resnet18(32), resnet50(8), GoogLeNet()])
def test_networks_compile_whole(network: nn.Module) -> None:
    size = 224 if isinstance(network, GoogLeNet) else 32
    with torch.autocast("cpu", torch.bfloat16):
        explained = torch._dynamo.explain(network)(torch.randn(2, 3, size, size))
    assert explained.graph_count == 1, explained.break_reasons


PRODUCTS = """
import torch
from benchmarks.timing import peak_memory
from src.metrics.clustering import Clustering
from src.metrics.retrieval import Retrieval

def evaluate(images, classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, 128, generator=generator)
    points = centres[labels] + 0.5 * torch.randn(images, 128, generator=generator)
    points = torch.nn.functional.normalize(points, dim=1)
    for metric in (Retrieval((1, 10, 100)), Clustering(restarts=1)):
        metric.update(points, labels)
        assert 0 < min(metric.compute().values()) <= 100

evaluate(500, 100)  # what the first call loads does not count
print(peak_memory(lambda: evaluate(30_251, 5_658)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in Linux's units")
def test_evaluation_at_half_the_size_of_products_fits_into_half_a_gibibyte() -> None:
    """All pairs of 30,251 images would take 3.4 GiB; their embeddings take 15 MiB."""
    result = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 50 < float(result.stdout) < 512
