"""The head: layers, initial weights, precision."""

import pytest
import torch
from torch.nn import functional

from src.backbones.head import Head


def test_hidden_layers_have_batch_norm_and_relu() -> None:
    torch.manual_seed(0)
    head, features = Head(5, 3, [7, 4]), torch.randn(6, 5)
    x = features.double()
    for layer, norm in ((head.hidden[0], head.hidden[1]), (head.hidden[3], head.hidden[4])):
        x = x @ layer.weight.double().T  # type: ignore[operator]
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt()  # type: ignore[operator]
        x = x.clamp(min=0)
    expected = x @ head.linear.weight.double().T + head.linear.bias
    torch.testing.assert_close(head.project(features).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head(features).double(), functional.normalize(expected, dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [[], [9]])
def test_orthogonal_weights_and_no_bias(hidden: list[int]) -> None:
    head = Head(9, 4, hidden, orthogonal=True)
    torch.testing.assert_close(head.linear.weight @ head.linear.weight.T, torch.eye(4), rtol=0, atol=1e-5)
    assert not head.linear.bias.any()
    assert Head(9, 4, hidden).linear.bias.any()


def test_it_computes_in_float32_under_autocast() -> None:
    head, features = Head(5, 3, [7]).eval(), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), head(features.float()))
        assert head(features.bfloat16()).dtype == torch.float32
