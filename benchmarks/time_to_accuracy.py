"""kNN accuracy on CIFAR-10 against seconds of training, from random weights and without labels.

`python -m benchmarks.time_to_accuracy --epochs 5 17`: `experiment=cifar10_fast`, three seeds each. `--beside wide paper
lightly` adds our wide network, the paper's recipe, and lightly's SimCLR recipe for as long as the longest of the others
but the wide one; `--without` leaves out one ingredient of ours at a time; `--figure PATH` draws it all.

Seconds are of training: steps and what is looked up between them. What is said of ours besides, "in all", is the whole
command, but for decoding the images once. Runs lie in `--out`: the same command goes on, and finished ones are read.
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import DEVICE, heading, wait
from src.datamodules.store import Split, read_store
from src.metrics.knn import WeightedKNN
from src.reporting.paper import EPOCHS, Quoted, quote
from src.running import figures
from src.running.runs import read_results, write_atomically
from src.schedules import cosine

Curve = list[tuple[float, float, float]]  # seconds; kNN top-1 in percent of the embedding, of the pooled features
OURS = ["experiment=cifar10_fast"]
ALONE = ["protocol.final.linear=null", "protocol.final.similarity=null", "callbacks.pictures=null"]  # kNN alone
WIDE = ["backbone.widths=[64,256,256]", "whitening=1024", "mirror=true", "augmentation.jitter.hue=0.1"]
BESIDE = {
    "wide": ("ours, wide, 36 epochs", [*OURS, *WIDE, "trainer.max_epochs=36", "trainer.check_val_every_n_epoch=12"]),
    "paper": (
        "the paper's recipe, 3 epochs",
        ["experiment=cifar10_paper", "trainer.max_epochs=3", "callbacks.probe=null", *ALONE],
    ),
}
WITHOUT = {
    "the whitening: the head's embedding": ["whitening=null"],
    "the maps before the last": ["backbone.pool=grid"],
    "the places: the maximum over the last map": ["backbone.pool=maximum"],
    "views of 24 pixels: 32": ["dataset.view_sizes=[]"],
    "the network: ResNet-18 of width 32": [
        "backbone=resnet18",
        "backbone.width=32",
        "~backbone.widths",
        "backbone.pool=null",
    ],
    "the schedule: the rate stays": ["schedule=steps", "schedule.milestones=[]", "schedule.factors=[]"],
    "decay that spares norms and biases": ["decay=all"],
}
RATE = 0.06  # of lightly's recipe for CIFAR-10 with batches of 128


def train(folder: Path, settings: list[str]) -> dict[str, Any]:
    """The results of a run of ours, trained where there are none yet."""
    if not (folder / "results.json").exists():
        subprocess.run([sys.executable, "-m", "src.train", *settings, "logger=none", f"run_dir={folder}"], check=True)
    return read_results(folder)


def curve(results: dict[str, Any]) -> Curve:
    scored = [row for row in results["history"] if "knn/top1" in row]
    return [(row.get("train/seconds", 0.0), row["knn/top1"], row["pooled/knn/top1"]) for row in scored]


def lightlys(folder: Path, seconds: float, seed: int) -> Curve:
    """lightly's SimCLR recipe, float32 and image by image, scored four times in `seconds` of training."""
    path = folder / "curve.json"
    if path.exists():
        return [tuple(point) for point in json.loads(path.read_text())]
    from benchmarks.train_step import CONF, lightlys_simclr, sgd  # lightly is there after `make bench`

    torch.manual_seed(seed)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["dataset=cifar10"])
    store = read_store(Path(config.cache_dir).expanduser() / "cifar10").splits
    network, head, criterion, loader = lightlys_simclr(store["train"].images.numpy())
    optimizer = sgd(network, head)
    found, trained, began = [(0.0, *score(network, head, store))], 0.0, time.perf_counter()
    while trained < seconds:
        for views, _ in loader:
            first, second = (view.to(DEVICE, non_blocking=True) for view in views)
            for group in optimizer.param_groups:  # half a cosine over the budget, as its recipe has over the epochs
                share = min(1.0, (trained + time.perf_counter() - began) / seconds)
                group["lr"] = cosine(share, RATE, 0)
            loss = criterion(head(network(first)), head(network(second)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if trained + time.perf_counter() - began > seconds * len(found) / 4:
                wait()
                trained += time.perf_counter() - began
                found.append((trained, *score(network, head, store)))
                began = time.perf_counter()
            if len(found) == 5:
                break
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found))
    return found


@torch.no_grad()
def score(network: nn.Module, head: nn.Module, store: Mapping[str, Split]) -> tuple[float, float]:
    """kNN top-1 in percent, k = 200, tau = 0.1, of the head's output and of what is before it."""
    network.eval()
    head.eval()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=DEVICE).view(2, 3, 1, 1)
    spaces: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("test", "train"):
        parts = []
        for images in store[name].images.split(500):
            with torch.autocast(DEVICE.type, torch.bfloat16):  # as ours is scored, and several times faster
                features = network((images.to(DEVICE).permute(0, 3, 1, 2) / 255 - mean) / std)
                embeddings = head(features)
            parts.append(tuple(functional.normalize(space.float(), dim=1) for space in (embeddings, features)))
        spaces[name] = tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[assignment]
    network.train()
    head.train()
    scores = []
    for query, gallery in zip(spaces["test"], spaces["train"], strict=True):
        knn = WeightedKNN().to(DEVICE)
        knn.update(query, store["test"].labels.to(DEVICE), gallery, store["train"].labels.to(DEVICE))
        scores.append(float(knn.compute()["top1"]))
    return scores[0], scores[1]


def draw(curves: dict[str, list[Curve]], paper: Quoted | None, path: Path) -> None:
    """Every run a line, or its two ends, the embedding's full and the pooled features' dotted; the paper's a level."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(curves.items()):
        for seed, points in enumerate(runs):
            minutes, *spaces = zip(*((seconds / 60, *scores) for seconds, *scores in points), strict=True)
            for line, scores in zip("-:", spaces, strict=True):
                label = name if not seed and line == "-" else None
                line = line if len(points) > 2 else " "  # what was scored twice alone has no curve
                axes.plot(minutes, scores, line, marker=".", color=f"C{number}", label=label)
    if paper:  # it has none of most settings
        label = f"the paper's, after {EPOCHS['cifar10']} epochs: {paper.value}"
        axes.axhline(paper.value, color="grey", linestyle="--", label=label)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("kNN top-1 (%), k = 200, τ = 0.1\ndotted: pooled features")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    figures.save(figure, path.with_suffix(""), [path.suffix.removeprefix(".")])


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.time_to_accuracy", None, __doc__, None)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("settings", nargs="*", help="of src.train, for ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5], help="of ours: the rate falls to zero over them")
    parser.add_argument("--beside", nargs="*", choices=[*BESIDE, "lightly"], default=[], help="seed 0 of others")
    parser.add_argument("--without", action="store_true", help="one ingredient at a time, seed 0")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_accuracy"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    heading(
        f"CIFAR-10: kNN against seconds of training, seeds {options.seeds}, mean and standard deviation",
        ("seconds of training", "kNN, embedding", "kNN, pooled", "seconds in all"),
    )
    curves: dict[str, list[Curve]] = {}
    for epochs in options.epochs:
        settings = [*OURS, f"trainer.max_epochs={epochs}", *options.settings]
        runs = [train(options.out / f"ours-{epochs}-{seed}", [*settings, f"seed={seed}"]) for seed in options.seeds]
        name = f"ours, {epochs} epochs"
        curves[name] = [curve(results) for results in runs]
        row(name, curves[name], [results["wall_time_s"] for results in runs])
    if options.without:
        for name, settings in WITHOUT.items():
            results = train(options.out / f"without-{settings[0]}", [*OURS, *options.settings, *settings, *ALONE])
            row(f"without {name}", [curve(results)], [results["wall_time_s"]])
    for short, (name, settings) in BESIDE.items():
        if short in options.beside:
            results = train(options.out / short, settings)
            curves[name] = [curve(results)]
            row(name, curves[name], [results["wall_time_s"]])
    if "lightly" in options.beside:
        equals = [runs for name, runs in curves.items() if name != BESIDE["wide"][0]]
        longest = max(points[-1][0] for runs in equals for points in runs)
        curves["lightly's SimCLR"] = [lightlys(options.out / "lightly", longest, 0)]
        row("lightly's SimCLR", curves["lightly's SimCLR"], [])
    if options.figure:
        draw(curves, quote({"ours": runs[0]})["ours"].get("knn/top1"), options.figure)


def row(name: str, runs: list[Curve], wall: list[float]) -> None:
    """Of the last points of some runs: mean, and standard deviation where there are several."""
    columns = [[run[-1][column] for run in runs] for column in range(3)] + [wall]
    print(f"| {name} | " + " | ".join(map(spread, columns)) + " |", flush=True)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
