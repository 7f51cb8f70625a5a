import pytest
import torch

from src.methods.base import TrainingSet
from src.methods.exemplar import Exemplar, softmax_loss
from tests.methods.reference import assert_same, softmax, unit


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_agrees_with_the_equation(temperature: float) -> None:
    f, w = unit(5, 4).requires_grad_(), (3 * unit(9, 4, seed=1)).requires_grad_()
    index = torch.tensor([0, 8, 3, 3, 1])
    assert_same(softmax_loss(f, w, index, temperature), softmax(f, w, index, temperature), f, w)


def test_weights_begin_as_a_linear_layers_do() -> None:
    method = Exemplar(1.0)
    method.setup(TrainingSet(2000, 16, pretrained=False, labels=None, num_features=8))
    assert 0.249 < method.weights.max() <= 0.25, "the root of D is 4"
    assert -0.25 <= method.weights.min() < -0.249


def test_learns_a_weight_for_each_image() -> None:
    method = Exemplar(1.0)
    method.setup(TrainingSet(6, 4, pretrained=False, labels=None, num_features=8))
    f, index = unit(6, 4, dtype=torch.float32), torch.arange(6)
    optimizer = torch.optim.SGD(method.parameters(), lr=50)
    before = method(f, index)["loss"].item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = method(f, index)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.item() < before / 10
    assert torch.equal((f @ method.weights.T).argmax(1), index)


def test_one_image_has_nothing_to_be_told_from() -> None:
    assert softmax_loss(unit(1, 4), unit(1, 4), torch.tensor([0]), 1.0).item() == 0
