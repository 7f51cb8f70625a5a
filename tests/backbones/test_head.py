"""The head: layers, initial weights, precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.nn import functional

from src.assemble import assemble
from src.backbones.head import EPSILON, Head
from tests.test_cost import configure


def test_hidden_layers_have_batch_norm_and_relu() -> None:
    torch.manual_seed(0)
    head, features = Head(5, 3, [7, 4]), torch.randn(6, 5)
    x = features
    for layer, norm in ((head.hidden[0], head.hidden[1]), (head.hidden[3], head.hidden[4])):
        x = x @ layer.weight.T  # type: ignore[operator]
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt()  # type: ignore[operator]
        x = x.clamp(min=0)
    expected = x @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head.project(features), expected)
    torch.testing.assert_close(head(features), functional.normalize(expected, dim=1))


@pytest.mark.parametrize("hidden", [[], [9]])
def test_orthogonal_weights_and_no_bias(hidden: list[int]) -> None:
    head = Head(9, 4, hidden, orthogonal=True)
    torch.testing.assert_close(head.linear.weight @ head.linear.weight.T, torch.eye(4), rtol=0, atol=1e-5)
    assert not head.linear.bias.any()
    assert Head(9, 4, hidden).linear.bias.any()


def test_whitened_as_by_scikit_learn() -> None:
    pixels = load_digits().data
    head = Head(64, 20, whitened=True)
    head.whiten(torch.from_numpy(pixels).float())
    theirs = torch.from_numpy(PCA(20, whiten=True).fit_transform(pixels)).float()
    torch.testing.assert_close(head.project(torch.from_numpy(pixels)).abs(), theirs.abs(), rtol=0.002, atol=0.002)


def test_what_hardly_varies_is_not_blown_up() -> None:
    pixels = torch.from_numpy(load_digits().data).float()
    assert (pixels.var(0) == 0).any()
    head = Head(64, 64, whitened=True)
    head.whiten(pixels)
    assert head.linear.weight.norm(dim=1).max() <= (EPSILON * pixels.var(0).mean()) ** -0.5 * 1.001
    assert head.project(pixels).var(0).max() <= 1.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [9]}, r"^head.whitened=true is of one linear layer: head.hidden=\[\] head.orthogonal=false$"),
        ({"orthogonal": True}, r"^head.whitened=true is of one linear layer: head.hidden=\[\] head.orthogonal=false$"),
        ({"dim": 10}, r"^head.whitened=true: embedding_dim=10 is more than the network's 9 features$"),
    ],
)
def test_what_cannot_be_whitened(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Head(9, **{"dim": 4} | options, whitened=True)


def test_whitening_needs_more_images_than_dimensions(cache: Path) -> None:
    config = configure(cache, "head.whitened=true", "dataset.limit=100", "protocol.metrics.knn.k=20")
    with pytest.raises(ValueError, match=r"^head.whitened=true: 100 training images have no embedding_dim=128 directi"):
        assemble(config, 1)


def test_it_computes_in_float32_under_autocast() -> None:
    head, features = Head(5, 3, [7]).eval(), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), head(features.float()))
        assert head(features.bfloat16()).dtype == torch.float32
