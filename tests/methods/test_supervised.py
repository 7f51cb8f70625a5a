import sys
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import nn

from src.methods.base import TrainingSet
from src.methods.supervised import Supervised
from tests.methods.reference import assert_same, unit

LABELS = torch.tensor([4, 4, 9, 9, 7, 7])


def make(loss: str, miner: str | None = None, labels: torch.Tensor = LABELS, **options: Any) -> Supervised:
    method = Supervised(loss, options, miner, {"type_of_triplets": "semihard"} if miner else {})
    method.setup(TrainingSet(len(labels), 5, pretrained=False, labels=labels, num_features=8))
    return method


@pytest.mark.parametrize("loss", ["LiftedStructureLoss", "TripletMarginLoss", "SupConLoss", "NTXentLoss"])
def test_a_loss_by_its_name(loss: str) -> None:
    """Batch places 5, 0, 1, 4 have the labels 7, 4, 4, 7, both views alike."""
    z, index = unit(8, 5).requires_grad_(), torch.tensor([5, 0, 1, 4])
    expected = getattr(losses, loss)()(z, torch.tensor([7, 4, 4, 7] * 2))
    assert_same(make(loss)(z, index)["loss"], expected, z)


def test_with_a_miner_and_options() -> None:
    z, index = unit(8, 5).requires_grad_(), torch.tensor([5, 0, 1, 4])
    labels = torch.tensor([7, 4, 4, 7] * 2)
    mined = miners.TripletMarginMiner(type_of_triplets="semihard")(z, labels)
    expected = losses.TripletMarginLoss(margin=0.2)(z, labels, mined)
    assert_same(make("TripletMarginLoss", "TripletMarginMiner", margin=0.2)(z, index)["loss"], expected, z)


def test_a_loss_with_weights_learns_them() -> None:
    method = make("ProxyNCALoss")
    assert [tuple(parameter.shape) for parameter in method.parameters()] == [(3, 5)], "a proxy for each class"
    loss = method(unit(4, 5, dtype=torch.float32), torch.tensor([0, 5]))["loss"]
    loss.backward()
    assert all(isinstance(parameter, nn.Parameter) and parameter.grad is not None for parameter in method.parameters())


def test_labels_may_begin_at_0() -> None:
    assert make("LiftedStructureLoss", labels=torch.tensor([0, 1])).labels.tolist() == [0, 1]


def test_it_says_that_labels_are_used() -> None:
    assert Supervised.supervised


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[supervised\]'"):
        make("LiftedStructureLoss")


def test_what_it_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match="some have none"):
        make("LiftedStructureLoss", labels=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="no NoSuchLoss among its losses"):
        make("NoSuchLoss")
    with pytest.raises(ValueError, match="no NoSuchMiner among its miners"):
        make("LiftedStructureLoss", "NoSuchMiner")
    with pytest.raises(ValueError, match=r"method.options=.* do not fit method.loss=TripletMarginLoss: .*size"):
        make("TripletMarginLoss", size=3)
