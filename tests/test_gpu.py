"""What a GPU computes is what a CPU computes: skipped where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.embedder import load
from src.metrics.clustering import Clustering
from src.metrics.retrieval import Retrieval
from src.vectors.kmeans import kmeans
from src.vectors.neighbors import nearest_neighbors
from tests.chaos import TIMES
from tests.conftest import Run
from tests.test_cost import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

QUICK = (
    "dataset.limit=512",
    "dataset.batch_size=64",
    "backbone=resnet18_slim",
    "protocol.metrics.knn.k=20",
    "callbacks.pictures=null",
    "callbacks.probe=null",
    "logger=none",
    "trainer.max_epochs=2",
)
EXACT = ("trainer.precision=32-true",)
GPU, CPU = "trainer.accelerator=gpu", "trainer.accelerator=cpu"


def history(run: Run, folder: Path, *settings: str) -> list[dict[str, float]]:
    """Of a run, the untrained network's row first, without times."""
    done = run("src.train", *QUICK, *settings, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "results.json").read_text())["history"]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_first_epoch_is_the_cpus(run: Run, tmp_path: Path, method: str) -> None:
    """Draws come from the host, so views, batches and noise are the same ones."""
    few = ["method.clusters=10", "method.pca=16"] if method == "deepcluster" else []
    chosen = [*EXACT, f"method={method}", *few]
    theirs = history(run, tmp_path / "theirs", *chosen, CPU)
    ours = history(run, tmp_path / "ours", *chosen, GPU)
    for name in ("knn/top1", "pooled/knn/top1"):
        assert ours[0][name] == pytest.approx(theirs[0][name], abs=1.2), "four of 360 images at most"
    assert ours[1]["train/loss"] == pytest.approx(theirs[1]["train/loss"], rel=0.02)
    assert ours[2]["train/loss"] == pytest.approx(theirs[2]["train/loss"], rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        EXACT,
        ["trainer.precision=bf16-mixed"],
        ["backbone=airbench", "dataset.view_milestones=[1]", "dataset.view_sizes=[24]"],
        ["trainer.precision=16-mixed"],
        ["method=deepcluster", "method.clusters=10", "method.pca=16"],
        ["method=stml", "ema=0.9"],
    ],
)
def test_a_graph_changes_no_number(run: Run, tmp_path: Path, settings: list[str]) -> None:
    """Also captured again for larger views, beside networks that are not, and between looks at all the images."""
    plain = history(run, tmp_path / "plain", *settings, GPU)
    assert history(run, tmp_path / "graph", *settings, GPU, "graph=true") == plain


def test_a_run_goes_on_with_a_graph(run: Run, tmp_path: Path) -> None:
    whole = history(run, tmp_path / "whole", GPU)
    history(run, tmp_path / "legs", GPU, "trainer.max_epochs=1")
    assert history(run, tmp_path / "legs", GPU, "graph=true") == whole


@pytest.mark.parametrize(
    "settings",
    [
        ["compile=true"],
        ["optimizer.fused=true"],
        ["microbatch=50"],
        ["dataset.resident=never"],
        ["trainer=ddp", "trainer.devices=1"],
        ["ema=0.9", "whitening=20", "head=mlp", "head.hidden=[32]"],
    ],
)
def test_an_option_changes_no_loss(run: Run, tmp_path: Path, settings: list[str]) -> None:
    """Compiled, all weights stepped at once, in parts, images in the host's memory, as one rank of many, averaged."""
    chosen = [*EXACT, *(["head=mlp", "head.hidden=[32]"] if "head=mlp" in settings else []), GPU]
    plain = history(run, tmp_path / "plain", *chosen)
    other = history(run, tmp_path / "other", *EXACT, *settings, GPU)
    tolerance = 0.1 if "microbatch=50" in settings else 0.02  # batch norm is of a part
    assert other[1]["train/loss"] == pytest.approx(plain[1]["train/loss"], rel=tolerance)


def test_bfloat16_is_chosen_and_learns_and_a_run_goes_on_to_the_bit(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "legs"
    whole_set = ["dataset.limit=null", "protocol.metrics.knn.k=200", "backbone=resnet18", "dataset.batch_size=128"]
    history(run, folder, *whole_set, "trainer.max_epochs=1")
    assert "bf16-mixed" in (folder / "config.yaml").read_text()
    (folder / "results.json").unlink()
    gone_on = history(run, folder, *whole_set, "trainer.max_epochs=10")
    whole = history(run, tmp_path / "whole", *whole_set, "trainer.max_epochs=10")
    assert [{name: gone_on[number][name] for name in row} for number, row in enumerate(whole)] == whole
    assert whole[-1]["knn/top1"] >= whole[0]["knn/top1"] + 7
    facts = json.loads((folder / "results.json").read_text())["hardware"]
    assert facts["accelerator"] == "gpu"
    assert facts["gpu"] == torch.cuda.get_device_name()


def test_a_run_is_embedded_with_and_scored_again_on_either_device(run: Run, trained: Path) -> None:
    images = torch.randint(0, 256, (50, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    embedders = [load(trained, accelerator=device, precision="32-true") for device in ("gpu", "cpu")]
    here, there = (embedder.encode(images.numpy()) for embedder in embedders)
    torch.testing.assert_close(torch.as_tensor(here), torch.as_tensor(there), rtol=0, atol=5e-3)  # TF32 convolutions
    again = run("src.evaluate", f"run={trained}", "accelerator=gpu")
    assert again.returncode == 0, again.stderr


def points(count: int, classes: int, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, 32, generator=generator)
    return normalize(centres[label] + noise * torch.randn(count, 32, generator=generator), dim=1), label


def test_searches_and_clusters_are_the_cpus() -> None:
    embeddings, _ = points(5000, 50)
    own = torch.arange(5000)
    similarity, index = nearest_neighbors(embeddings, embeddings, 20, own)
    found = nearest_neighbors(embeddings.cuda(), embeddings.cuda(), 20, own.cuda())
    torch.testing.assert_close(found[0].cpu(), similarity, rtol=0, atol=1e-5)
    assert (found[1].cpu() == index).float().mean() > 0.999, "equals but for near ties"
    inertia = kmeans(embeddings, 50)[1]
    assert kmeans(embeddings.cuda(), 50)[1] == pytest.approx(inertia, rel=0.02)


@pytest.mark.parametrize("make", [Retrieval, lambda: Clustering(3, "arithmetic")])
def test_scores_are_the_cpus(make: Any) -> None:
    """Few clusters: from any start k-means ends nearly alike, within 0.7 of NMI; of twenty its ends are 5 apart."""
    embeddings, labels = points(2000, 5, noise=1.6)
    here, there = make().cuda(), make()
    here.update(embeddings.cuda(), labels.cuda())
    there.update(embeddings, labels)
    for name, score in there.compute().items():
        assert float(here.compute()[name]) == pytest.approx(float(score), abs=1.0), name
