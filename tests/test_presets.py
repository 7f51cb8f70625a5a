"""Every preset, composed, against a table typed from its source: see the heads of conf/experiment/*.yaml."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.augmentations import random
from src.methods.invariant_spreading import InvariantSpreading
from src.methods.stml import STML
from tests.conftest import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def unresolved(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def load(*overrides: str) -> DictConfig:
    config = unresolved(*overrides, "logger=none", "~callbacks")
    OmegaConf.resolve(config)
    return config


def text_seen(epoch: int) -> float:
    """Section 4.1: "0.03 … decayed by 0.1 and 0.01 at 120 and 160 epoch"."""
    return 0.03 * (1 if epoch < 120 else 0.1 if epoch < 160 else 0.01)


def program_seen(epoch: int) -> float:
    """demo_seen.py:160-171."""
    if 120 <= epoch < 160:
        return 0.03 * 0.1
    if 160 <= epoch < 200:
        return 0.03 * 0.05
    return 0.03 * 0.01 if epoch >= 200 else 0.03


def text_unseen(epoch: int) -> float:
    """Section 4.2: "0.001 without decay"."""
    return 0.001


def program_unseen(epoch: int) -> float:
    """demo_unseen.py:199-210."""
    if epoch < 20:
        return 0.001
    return 0.001 * 0.1 if epoch < 40 else 0.001 * 0.01


@dataclass(frozen=True)
class Source:
    """What the paper's text or the published program says."""

    epochs: int
    rate: Callable[[int], float]
    stop_gradient: bool
    positives: str
    batch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    protocol: dict[str, Any]


CIFAR_MEAN = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR_STD = (0.2023 * 255, 0.1994 * 255, 0.2010 * 255)
STL_MEAN, STL_STD = (0.4467 * 255, 0.4398 * 255, 0.4066 * 255), (0.2603 * 255, 0.2566 * 255, 0.2713 * 255)
KNN = {"knn": {"k": 200, "temperature": 0.1}}
RESNET = {"_target_": "src.backbones.resnet.resnet18", "width": 64}
GOOGLENET = {"_target_": "src.backbones.inception.inception", "pretrained": True, "pool": "average"}
WIDE = partial(Source, mean=(122.7717, 115.9465, 102.9801), std=(1, 1, 1), batch=64, backbone=GOOGLENET, epochs=60)
SEEN = partial(Source, batch=128, positives="self", protocol=KNN)


def retrieval(k: list[int], average: str, restarts: int) -> dict[str, Any]:
    return {"retrieval": {"k": k}, "clustering": {"average": average, "restarts": restarts}}


def fine(name: str, classes: int) -> dict[str, Any]:
    return {"name": name, "size": 256, "resample": "lanczos", "train_classes": classes, "image_size": 227}


SOURCES = {
    "cifar10_paper": SEEN(
        epochs=200,
        rate=text_seen,
        stop_gradient=False,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        dataset={"name": "cifar10", "image_size": 32},
        backbone=RESNET | {"initial_weights": "kaiming", "pool": None},
    ),
    "cifar10_official": SEEN(
        epochs=301,
        rate=program_seen,
        stop_gradient=True,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        dataset={"name": "cifar10", "image_size": 32},
        backbone=RESNET | {"initial_weights": "torch", "pool": None},
    ),
    "stl10_paper": SEEN(
        epochs=200,
        rate=text_seen,
        stop_gradient=False,
        mean=STL_MEAN,
        std=STL_STD,
        dataset={"name": "stl10", "split": "train", "image_size": 96},
        backbone=RESNET | {"initial_weights": "kaiming", "pool": None},
    ),
    "stl10_official": SEEN(
        epochs=301,
        rate=program_seen,
        stop_gradient=True,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        dataset={"name": "stl10", "split": "train+unlabeled", "image_size": 96},
        backbone=RESNET | {"initial_weights": "torch", "pool": 7},
    ),
    **{
        f"{name}_paper": WIDE(
            rate=text_unseen,
            stop_gradient=False,
            positives="nearest" if name == "cub200" else "self",
            dataset=fine(name, classes),
            protocol=retrieval(k, "arithmetic", 1 if name == "products" else 3),
        )
        for name, classes, k in (
            ("cub200", 100, [1, 2, 4, 8]),
            ("cars196", 98, [1, 2, 4, 8]),
            ("products", 11318, [1, 10, 100]),
        )
    },
    **{
        f"{name}_official": WIDE(
            rate=program_unseen,
            stop_gradient=True,
            positives="nearest" if name == "cub200" else "self",
            dataset=fine(name, classes),
            protocol=retrieval(k, "geometric", 1 if name == "products" else 10),
        )
        for name, classes, k in (
            ("cub200", 100, [1, 2, 4, 8]),
            ("cars196", 98, [1, 2, 4, 8]),
            ("products", 11318, [1, 10, 100]),
        )
    },
}


@pytest.mark.parametrize("preset", SOURCES)
def test_a_preset_says_what_its_source_says(preset: str) -> None:
    config, source = load(f"experiment={preset}"), SOURCES[preset]
    assert config.trainer.max_epochs == source.epochs
    assert config.dataset.batch_size == source.batch
    assert (config.embedding_dim, config.whitening) == (128, None)
    assert config.dataset.limit is None
    assert tuple(config.dataset.mean) == pytest.approx(source.mean)
    assert tuple(config.dataset.std) == pytest.approx(source.std)
    for said, composed in ((source.dataset, config.dataset), (source.backbone, config.backbone)):
        assert {key: composed[key] for key in said} == said
    metrics = OmegaConf.to_container(config.protocol.metrics)
    assert isinstance(metrics, dict)
    assert set(metrics) - {"geometry"} == set(source.protocol)  # it says more of the embeddings than any source
    for name, said in source.protocol.items():
        assert {key: metrics[name][key] for key in said} == said
    assert config.protocol.space == "embedding"
    assert config.protocol.gallery == ("knn" in source.protocol)
    assert config.protocol.disjoint == ("knn" not in source.protocol)

    method = instantiate(config.method)
    assert isinstance(method, InvariantSpreading)
    assert (method.temperature, method.negatives) == (0.1, "all")
    assert (method.stop_gradient, method.positives) == (source.stop_gradient, source.positives)


@pytest.mark.parametrize("preset", SOURCES)
def test_a_preset_learns_at_the_rate_of_its_source(preset: str) -> None:
    config, source = load(f"experiment={preset}"), SOURCES[preset]
    assert (config.decay, config.ema, config.microbatch) == ("all", None, None)
    optimizer, schedule = instantiate(config.optimizer)([torch.zeros(1)]), instantiate(config.schedule)
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    settings = [group[name] for name in ("momentum", "weight_decay", "nesterov", "dampening")]
    assert settings == [0.9, 5e-4, False, 0]
    for epoch in range(source.epochs):
        for step in (0, 1, 9):
            assert group["lr"] * schedule(10 * epoch + step, 10) == pytest.approx(source.rate(epoch)), epoch


@pytest.mark.parametrize("preset", SOURCES)
def test_a_preset_augments_as_its_source(preset: str) -> None:
    """demo_seen.py:85-92 and demo_unseen.py:106-124; section 4.2 for the latter."""
    config = load(f"experiment={preset}").augmentation
    made = {name: instantiate(config[name]) for name in config if name not in ("_target_", "size")}
    if "knn" in SOURCES[preset].protocol:
        assert list(made) == ["crop", "jitter", "gray", "flip"]
        assert isinstance(made["crop"], random.RandomResizedCrop)
        assert list(config.crop.scale) == [0.2, 1.0]
        assert list(config.crop.ratio) == pytest.approx([3 / 4, 4 / 3])
        strengths = [config.jitter[name] for name in ("brightness", "contrast", "saturation", "hue")]
        assert strengths == [0.4] * 4
        assert config.gray.p == 0.2
    else:
        assert list(made) == ["crop", "flip"]
        assert isinstance(made["crop"], random.RandomCrop)
    assert config.size == config.crop.size == SOURCES[preset].dataset["image_size"]
    assert config.flip.p == 0.5


# Of STML-CVPR22: its README's commands (sigma, delta, IPC, momentum), and the classes and ranks of its datasets.
SELF_TAUGHT: dict[str, tuple[dict[str, float], int, list[int]]] = {
    "cub200_stml": ({"sigma": 3, "delta": 1, "neighbors": 5, "teacher_decay": 0.999}, 100, [1, 2, 4, 8]),
    "cars196_stml": ({"sigma": 3, "delta": 1, "neighbors": 5, "teacher_decay": 0.999}, 98, [1, 2, 4, 8]),
    "products_stml": ({"sigma": 3, "delta": 0.9, "neighbors": 2, "teacher_decay": 0.9}, 11318, [1, 10, 100]),
}


def test_every_preset_has_its_source() -> None:
    ours = ["cifar10_fast"]
    assert sorted([*SOURCES, *SELF_TAUGHT, *ours]) == PRESETS


# All that a preset changes: groups beside its dataset's, and settings, whose values the tables above hold.
TEXT = "recipe.stop_gradient"
PROGRAM = "recipe.milestones recipe.factors backbone.initial_weights trainer.max_epochs"
TEXT_UNSEEN = "recipe.stop_gradient recipe.milestones recipe.factors"
PROGRAM_UNSEEN = "recipe.milestones protocol.metrics.clustering.average"  # its factors are the default
TAUGHT = (
    "augmentation=resized_crop_flip optimizer=adamp schedule=cosine backbone.pool head.orthogonal input.mean"
    " dataset.resample dataset.batch_size optimizer.nesterov schedule.every trainer.max_epochs"
)
CHANGES = {
    "cifar10_fast": (  # ours: its values are in no table
        "backbone=airbench schedule=cosine whitening recipe.stop_gradient recipe.lr backbone.widths backbone.pool"
        " dataset.view_sizes schedule.warmup decay protocol.final.linear trainer.max_epochs callbacks.pictures"
        " callbacks.probe"
    ),
    "cifar10_paper": TEXT,
    "cifar10_official": PROGRAM,
    "stl10_paper": TEXT,
    "stl10_official": f"{PROGRAM} backbone.pool dataset.split input.mean input.std",
    "cub200_paper": f"{TEXT_UNSEEN} recipe.positives",
    "cub200_official": f"{PROGRAM_UNSEEN} protocol.metrics.clustering.restarts recipe.positives",
    "cub200_stml": f"method=stml {TAUGHT}",
    "cars196_paper": TEXT_UNSEEN,
    "cars196_official": f"{PROGRAM_UNSEEN} protocol.metrics.clustering.restarts",
    "cars196_stml": f"method=stml {TAUGHT}",
    "products_paper": TEXT_UNSEEN,
    "products_official": PROGRAM_UNSEEN,
    "products_stml": f"method=stml_products {TAUGHT}",
}


def changes(ours: Any, plain: Any, name: str = "") -> set[str]:
    """The dotted names of what differs; `...` stands for what one of them lacks."""
    if not (isinstance(ours, dict) and isinstance(plain, dict)):
        return set() if ours == plain else {name}
    return {
        change
        for key in ours | plain
        for change in changes(ours.get(key, ...), plain.get(key, ...), f"{name}.{key}".removeprefix("."))
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_nothing_else(preset: str) -> None:
    """Before interpolation: what only follows another setting has not changed."""
    said = set(CHANGES[preset].split())
    groups = {word for word in said if "=" in word}
    ours, plain = unresolved(f"experiment={preset}"), unresolved(f"dataset={preset.partition('_')[0]}", *groups)
    assert changes(OmegaConf.to_container(ours), OmegaConf.to_container(plain)) == said - groups


@pytest.mark.parametrize("preset", SELF_TAUGHT)
def test_stml_is_as_in_its_program(preset: str) -> None:
    """main.py:35-103 and 237-268, dataset/utils.py:84-101, net/inception.py:152-185; the paper's 128 dimensions."""
    config, (options, classes, ranks) = load(f"experiment={preset}"), SELF_TAUGHT[preset]
    method = instantiate(config.method)
    assert isinstance(method, STML)
    assert {name: getattr(method, name) for name in options} == options
    assert (method.g_dim, config.embedding_dim, config.head.orthogonal, list(config.head.hidden)) == (
        1024,
        128,
        True,
        [],
    )
    assert (config.dataset.batch_size, config.trainer.max_epochs, config.whitening) == (120, 90, None)
    assert (config.decay, config.ema, config.microbatch) == ("all", None, None)
    assert (list(config.input.mean), list(config.input.std)) == ([128, 117, 104], [1, 1, 1])
    assert (list(config.dataset.mean), list(config.dataset.std)) == ([128, 117, 104], [1, 1, 1])
    data = {"name": preset.removesuffix("_stml"), "size": 256, "resample": "bilinear", "train_classes": classes}
    assert {key: config.dataset[key] for key in data} == data
    network = GOOGLENET | {"pool": "average_max", "weights": None}
    assert {key: config.backbone[key] for key in network} == network
    assert list(config.protocol.metrics.retrieval.k) == ranks
    assert (config.protocol.space, config.protocol.gallery, config.protocol.disjoint) == ("embedding", False, True)

    parameters = [torch.zeros(2, 3)]
    (group,) = instantiate(config.optimizer)(parameters).param_groups
    assert config.optimizer._target_ == "src.optimizers.AdamP"
    assert (group["lr"], group["weight_decay"], group["nesterov"]) == (1e-4, 1e-2, True)
    schedule = instantiate(config.schedule)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(parameters, lr=1e-4), T_max=90)
    for epoch in range(90):
        for step in (0, 5, 9):
            assert group["lr"] * schedule(10 * epoch + step, 10) == pytest.approx(theirs.get_last_lr()[0]), epoch
        theirs.optimizer.step()
        theirs.step()

    made = {name: instantiate(part) for name, part in config.augmentation.items() if name not in ("_target_", "size")}
    assert {name: type(part) for name, part in made.items() if part} == {
        "crop": random.RandomResizedCrop,
        "flip": random.RandomHorizontalFlip,
    }
    assert (list(made["crop"].scale), made["crop"].size, made["flip"].p) == ([0.16, 1.0], 227, 0.5)
    assert list(made["crop"].ratio) == pytest.approx([3 / 4, 4 / 3])


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_goes_with_any_method(method: str) -> None:
    """Its options of one method are no other's."""
    for preset in ("cifar10_paper", "cub200_paper", "cub200_stml", "products_stml"):
        composed = load(f"experiment={preset}", f"method={method}").method
        written = OmegaConf.load(ROOT / "conf" / "method" / f"{method}.yaml")
        assert isinstance(written, DictConfig)
        assert set(composed) == set(written)
        instantiate(composed)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_same_for_a_folder(preset: str) -> None:
    own = load(f"experiment={preset}")
    folder = load(f"experiment={preset}", "dataset=folder", "dataset.root=x", f"input.size={own.input.size}")
    plain = load("dataset=folder", "dataset.root=x")
    own_choice = (plain.whitening, plain.mirror, plain.backbone.pool)
    assert own_choice == (1024, True, "pyramid"), "else the presets would have nothing to undo"
    network = ("whitening", "mirror", "augmentation", "backbone", "head", "embedding_dim")
    for group in (*network, "method", "optimizer", "schedule"):
        assert folder[group] == own[group], group


def test_the_command_line_has_the_last_word() -> None:
    method = load("experiment=cub200_paper", "method.positives=self", "method.stop_gradient=true").method
    assert (method.positives, method.stop_gradient) == ("self", True)


@pytest.mark.parametrize("preset", [*SOURCES, *SELF_TAUGHT])
def test_a_head_names_source_time_and_number(preset: str) -> None:
    text = (ROOT / "conf" / "experiment" / f"{preset}.yaml").read_text()
    head = " ".join(line.removeprefix("# ") for line in text[: text.index("defaults:")].splitlines())
    for word in (f"python -m src.train experiment={preset}", "Source: ", "Expect "):
        assert word in head
    assert " h on 2 CPU cores" in head or "For a GPU" in head
