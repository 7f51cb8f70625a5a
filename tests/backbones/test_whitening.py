"""What is scored in the head's place, against scikit-learn's covariance."""

import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from torch.nn import functional

from src.backbones.whitening import Whitening

PIXELS = torch.from_numpy(load_digits().data).float()


def test_it_whitens_the_covariance_that_scikit_learn_has() -> None:
    whitening = Whitening(64, 20)
    whitening.fit(PIXELS)
    covariance = torch.from_numpy(LedoitWolf().fit(PIXELS.numpy()).covariance_).double()
    weight = whitening.weight.double()
    torch.testing.assert_close(weight @ covariance @ weight.T, torch.eye(20).double(), rtol=0, atol=1e-4)
    largest = torch.linalg.eigvalsh(covariance).flip(0)[:20]
    torch.testing.assert_close(weight.norm(dim=1), largest.rsqrt(), rtol=1e-4, atol=0)
    white = PIXELS @ whitening.weight.T + whitening.bias
    torch.testing.assert_close(white.mean(0), torch.zeros(20), rtol=0, atol=1e-4)
    torch.testing.assert_close(whitening(PIXELS), functional.normalize(white, dim=1))


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_what_few_images_say_nothing_of_is_not_blown_up(count: int) -> None:
    """Of the pixels some never vary, and ten images have nine directions at most."""
    whitening = Whitening(64, 64)
    whitening.fit(PIXELS[:count])
    others = PIXELS[1000:]
    assert whitening(others).isfinite().all()
    if count > 1:
        assert (others @ whitening.weight.T).var(0).max() < 20


def test_alike_things_are_told_apart_by_what_varies_little() -> None:
    """Eight classes differ in three directions of a hundredth of the others' variance, which hide it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 8
    noise = torch.randn(1000, 9, generator=generator)
    corners = 2 * torch.stack([labels % 2, labels // 2 % 2, labels // 4], 1) - 1
    points = torch.cat([10 * noise[:, :6], corners + 0.1 * noise[:, 6:]], 1)
    whitening = Whitening(9, 9)
    whitening.fit(points)

    def correct(vectors: torch.Tensor) -> float:
        similarity = vectors @ vectors.T - 9 * torch.eye(len(vectors))
        return float((labels[similarity.argmax(1)] == labels).float().mean())

    assert correct(functional.normalize(points, dim=1)) < 0.3
    assert correct(whitening(points)) > 0.8


def test_parts_count_alike() -> None:
    """As if each had been divided by the root of its variance; one that does not vary, on images seen, says nothing."""
    features = torch.cat([PIXELS, PIXELS[:, 20:50] ** 2, torch.full((len(PIXELS), 2), 3.0)], 1)
    whitening, expected, plain = Whitening(96, 10, (64, 30, 2)), Whitening(96, 10), Whitening(96, 10)
    whitening.fit(features)
    alike = [part / part.var(0, correction=0).sum().sqrt() for part in (features[:, :64], features[:, 64:94])]
    both = torch.cat([*alike, features[:, 94:]], 1)
    expected.fit(both)
    torch.testing.assert_close(whitening(features), expected(both), rtol=0, atol=1e-4)
    plain.fit(features)
    assert (plain(features) * whitening(features)).sum(1).mean() < 0.9, "the larger part alone"
    for few in (1, 2):
        whitening.fit(features[:few])
        assert whitening(features).isfinite().all()


def test_dimensions_are_at_most_the_networks() -> None:
    assert (Whitening(6, 512).dim, Whitening(6, 4).dim) == (6, 4)
    assert Whitening(6, 512)(torch.ones(2, 6)).shape == (2, 6)


def test_it_is_fitted_and_not_learned() -> None:
    whitening = Whitening(6, 4)
    assert not [*whitening.parameters()]
    assert whitening.state_dict().keys() == {"weight", "bias"}


def test_it_computes_in_float32_under_autocast() -> None:
    whitening, features = Whitening(64, 9), PIXELS[:6].bfloat16()
    whitening.fit(PIXELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(features), whitening(features.float()))
        assert whitening(features).dtype == torch.float32
