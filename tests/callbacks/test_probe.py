"""The online probe: learned as torch would, of labels that the network never sees, and kept to the bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from src.assemble import assemble, make_trainer
from src.callbacks.evaluation import Evaluation
from src.callbacks.history import History
from src.callbacks.probe import Probe
from src.datamodules.batches import BatchedSplit
from src.datamodules.store import Split
from src.metrics.knn import WeightedKNN
from src.running import checkpoints, signals
from tests.callbacks.test_interrupted import HERE, SMALL, Signal
from tests.chaos import differences
from tests.conftest import ROOT
from tests.running.test_distributed import RANKS, on_two_ranks

NOTHING: Any = None
PLAIN: Any = SimpleNamespace(whitening=None)
DATA = {"unseen": False, "train_labels": torch.arange(10)}


def started(**changes: Any) -> Probe:
    probe, trainer = Probe(lr=0.5), SimpleNamespace(datamodule=SimpleNamespace(**DATA | changes))
    probe.setup(trainer, NOTHING, "fit")  # type: ignore[arg-type]
    return probe


def scored(probe: Probe, query: dict[str, Tensor]) -> dict[str, float]:
    """What the probe logs where the evaluation has gathered these test images, and a gallery."""
    evaluation = Evaluation({"knn": WeightedKNN(k=1)}, {}, "embedding", "knn/top1")
    evaluation.sets = {"query": query, "gallery": {name: column.flip(0) for name, column in query.items()}}
    found: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **options: found.update({name: float(value)}))
    trainer: Any = SimpleNamespace(callbacks=[evaluation, probe])
    probe.on_validation_epoch_end(trainer, module)
    return found


def step(probe: Probe, features: Tensor, labels: Tensor) -> None:
    outputs = {"embeddings": features[:, :7], "features": features}
    probe.on_train_batch_end(NOTHING, PLAIN, outputs, {"label": labels}, 0)


def test_a_whitened_embedding_has_none() -> None:
    """It is not what is trained on, and its axes are others at each evaluation."""
    probe, whitened = started(), SimpleNamespace(whitening=object())
    outputs = {"embeddings": torch.randn(4, 7), "features": torch.randn(4, 9)}
    probe.on_train_batch_end(NOTHING, whitened, outputs, {"label": torch.arange(4)}, 0)  # type: ignore[arg-type]
    query = {"embedding": torch.randn(4, 5), "pooled": torch.randn(4, 9), "label": torch.arange(4)}
    assert scored(probe, query).keys() == {"pooled/probe/top1"}


def batches(count: int, images: int, views: int) -> list[tuple[Tensor, Tensor]]:
    """Features `(VB, 9)` of any norm and labels `(B,)`, some of them -1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 10, (count, images), generator=generator)
    labels[-1, 1:] = -1
    points = torch.randn(11, 9, generator=generator)[labels]
    noise = torch.randn(count, views, images, 9, generator=generator)
    return [(given.flatten(0, 1), own) for given, own in zip(points.unsqueeze(1) + 0.1 * noise, labels, strict=True)]


@pytest.mark.parametrize("views", [1, 2])
def test_it_learns_as_torch_would(views: int) -> None:
    """Batch norm without weights, a linear layer from zero, cross-entropy of the labelled, gradient descent."""
    probe = started()
    norm, layer = nn.BatchNorm1d(9, affine=False, eps=1e-8), nn.Linear(9, 10)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for number, (features, labels) in enumerate(batches(6, 16, views)):
        unit = normalize(features, dim=1)
        if number == 0:
            norm.running_mean, norm.running_var = unit.mean(0), unit.var(0)
        loss = cross_entropy(layer(norm(unit) / 3), labels.repeat(views), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(probe, features, labels)
    kept = probe.learned["pooled"]
    torch.testing.assert_close(kept["weights"], torch.cat([layer.weight.T, layer.bias.unsqueeze(0)]).detach())
    torch.testing.assert_close(kept["mean"], norm.running_mean)
    torch.testing.assert_close(kept["variance"], norm.running_var)
    assert probe.learned["embedding"]["weights"].shape == (8, 10)


def test_unlabelled_images_teach_nothing() -> None:
    probe = started()
    step(probe, torch.randn(8, 9), torch.full((4,), -1))
    assert not probe.learned["pooled"]["weights"].any()


@pytest.mark.parametrize("changes", [{"unseen": True}, {"train_labels": torch.full((4,), -1)}])
def test_without_labels_that_are_tested_it_does_nothing(changes: dict[str, Any]) -> None:
    probe = started(**changes)
    step(probe, torch.randn(8, 9), torch.zeros(4, dtype=torch.long))
    query = {"label": torch.zeros(8), "embedding": torch.randn(8, 7), "pooled": torch.randn(8, 9)}
    assert (probe.learned, scored(probe, query)) == ({}, {})


def test_the_network_has_no_gradient_of_it_and_half_precision_is_enough() -> None:
    whole, half = started(), started()
    for features, labels in batches(3, 16, 2):
        step(whole, features.bfloat16().float(), labels)
        step(half, features.bfloat16().requires_grad_(), labels)
    assert differences(whole.learned, half.learned, "learned") == []
    assert not any(tensor.requires_grad for kept in half.learned.values() for tensor in kept.values())


def test_a_step_reads_no_number() -> None:
    """Tensors on torch's meta device have none: to read one is an error."""
    probe = started()
    for _ in range(2):
        step(probe, torch.empty(8, 9, device="meta"), torch.empty(4, dtype=torch.long, device="meta"))
    assert probe.learned["pooled"]["weights"].is_meta


def test_digits_are_told_apart(digits: tuple[Tensor, Tensor]) -> None:
    probe, points, labels = started(), digits[0].float(), digits[1]
    for rows in torch.arange(1400).repeat(5).split(100):
        step(probe, points[rows], labels[rows])
    found = scored(probe, {"label": labels[1400:], "embedding": points[1400:, :7], "pooled": points[1400:]})
    assert list(found) == ["probe/top1", "pooled/probe/top1"], "the gallery is no query"
    assert found["pooled/probe/top1"] > 85
    kept = probe.learned["pooled"]
    standard = (points[1400:] - kept["mean"]) / (kept["variance"] + 1e-8).sqrt() / 8
    guesses = (standard @ kept["weights"][:-1] + kept["weights"][-1]).argmax(1)
    assert found["pooled/probe/top1"] == pytest.approx(100 * (guesses == labels[1400:]).double().mean().item())
    again = started()
    again.load_state_dict(probe.state_dict())
    assert again.learned is probe.learned


def _two_ranks(rank: int, folder: Path) -> None:
    probe = started()
    for features, labels in batches(6, 16, 2):
        mine = torch.arange(16).chunk(RANKS)[rank]
        step(probe, features.unflatten(0, (2, 16))[:, mine].flatten(0, 1), labels[mine])
    torch.save(probe.learned, folder / f"{rank}.pt")


def test_two_ranks_learn_as_one(tmp_path: Path) -> None:
    on_two_ranks(_two_ranks, tmp_path)
    probe = started()
    for features, labels in batches(6, 16, 2):
        step(probe, features, labels)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    assert differences(first, second, "learned") == []
    for space, kept in probe.learned.items():
        for name, tensor in kept.items():
            torch.testing.assert_close(first[space][name], tensor, rtol=1e-4, atol=1e-6)


def test_companions_bring_labels_of_their_own() -> None:
    split = Split(torch.zeros(6, 1, 1, 3, dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 4, 5]))
    rows = torch.tensor([5, 4, 3])
    assert BatchedSplit(split, rows, True).__getitems__([2, 0])["label"].tolist() == [3, 5]
    paired = BatchedSplit(split, rows, True, torch.tensor([[0, 1], [1, 2], [2, 2]]))
    assert paired.__getitems__([1, 0])["label"].tolist() == [4, 5, 3, 4]


def train(cache: Path, folder: Path, *overrides: str, cut: int | None = None) -> tuple[History, dict[str, Any]]:
    """Train in a folder, or go on there, to the end or to a signal in a step: every row, and the last checkpoint."""
    signals._asked = 0
    folder.mkdir(exist_ok=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*SMALL, *HERE, f"cache_dir={cache}", f"run_dir={folder}", *overrides])
    pl.seed_everything(config.seed, verbose=False)
    datamodule, module, evaluation = assemble(config, 1)
    history = History()
    trainer = make_trainer(config, folder, module, evaluation, history, None, None)
    trainer.callbacks.insert(0, Signal(cut))  # type: ignore[attr-defined]
    last = checkpoints.find_last(folder, config.trainer.max_epochs)
    if last is None:
        trainer.validate(module, datamodule, verbose=False)
    trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)
    return history, checkpoints.load(checkpoints.path_of(folder, "last"))


def test_the_network_never_sees_it(cache: Path, tmp_path: Path, listening: None) -> None:
    """The same weights to the bit with and without; and it goes on within an epoch, to the bit."""
    history, whole = train(cache, tmp_path / "whole")
    without, plain = train(cache, tmp_path / "without", "callbacks.probe=null")
    for what in ("state_dict", "optimizer_states"):
        assert differences(whole[what], plain[what], what) == []
    names = {"probe/top1", "pooled/probe/top1"}
    assert [names & row.keys() for row in history.rows] == [set(), names, names], "untrained, it says nothing"
    assert [names & row.keys() for row in without.rows] == [set()] * 3
    with pytest.raises(SystemExit):
        train(cache, tmp_path / "cut", cut=6)
    rest, cut = train(cache, tmp_path / "cut")
    assert len(whole["callbacks"]["Probe"]["learned"]) == 2
    assert differences(cut["callbacks"]["Probe"], whole["callbacks"]["Probe"], "probe") == []
    assert rest.rows[-1]["probe/top1"] == history.rows[-1]["probe/top1"]


def test_scores_are_named_as_the_others(cache: Path, tmp_path: Path, listening: None) -> None:
    held_out = ("dataset.validation=0.2", "protocol.space=pooled", "trainer.max_epochs=1")
    history, _ = train(cache, tmp_path, *held_out)
    scores = {name for name in history.rows[-1] if "probe" in name}
    knn = {name.replace("knn", "probe") for name in history.rows[-1] if name.endswith("knn/top1")}
    assert scores == knn
    assert len(scores) == 4
