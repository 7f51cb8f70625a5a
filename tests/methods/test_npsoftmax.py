import pytest
import torch

from src.methods.base import TrainingSet
from src.methods.npsoftmax import NPSoftmax
from tests.methods.reference import assert_same, softmax, unit


@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
def test_agrees_with_the_equation(tau: float) -> None:
    f, v, index = unit(5, 4).requires_grad_(), unit(9, 4, seed=1), torch.tensor([0, 8, 3, 4, 1])
    method = NPSoftmax(tau, 0.5)
    method.setup(TrainingSet(9, 4, pretrained=False, labels=None, num_features=8))
    method.double().bank.memory.copy_(v)
    assert_same(method(f, index)["loss"], softmax(f, v, index, tau), f)


def test_the_memory_follows_after_the_step() -> None:
    """The loss reads the memory as it was; the backward pass may not find it changed."""
    method = NPSoftmax(0.1, 0.5)
    method.setup(TrainingSet(9, 4, pretrained=False, labels=None, num_features=8))
    memory = method.bank.memory.clone()
    f, index = unit(3, 4, dtype=torch.float32).requires_grad_(), torch.tensor([2, 0, 5])
    loss = method(f, index)["loss"]
    assert torch.equal(method.bank.memory, memory), "an empty memory serves the first epoch"
    loss.backward()
    method.after_step(f.detach(), index)
    assert ((method.bank.memory != memory).any(1).nonzero().squeeze(1)).tolist() == [0, 2, 5]
    assert method(f, index)["loss"] < loss
