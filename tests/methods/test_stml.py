"""The loss against loops written from the formulas, and what surrounds it: order, teacher, setup."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from src.methods.base import TrainingSet
from src.methods.stml import (
    STML,
    contextual_similarity,
    distillation_loss,
    pairwise_similarity,
    relative_distances,
    relaxed_contrastive_loss,
)
from tests.methods.reference import alike, assert_same, distilled, relaxed, self_taught

FEATURES = 7


def rows(image: list[int], dim: int, seed: int, spread: float = 0.6) -> Tensor:
    """Two views of each image: around its own centre, those of images 0 to 3 close together; far from 0."""
    generator = Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=generator, dtype=torch.float64)
    centres[1:4] = centres[0] + 0.5 * centres[1:4]
    noise = torch.randn(2 * len(image), dim, generator=generator, dtype=torch.float64)
    return centres[torch.tensor(image * 2)] + spread * noise + 3


IMAGES = {
    "all different": [0, 1, 2, 3, 10, 11, 12, 13],
    "some twice": [0, 1, 0, 2, 10, 11, 10, 3],
    "one four times": [0, 0, 1, 0, 0, 2, 10, 11],  # more views than half of a row's nearest
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize(("sigma", "delta", "neighbors"), [(3, 1, 2), (0.5, 0.9, 4), (1, 1.3, 8)])
def test_agrees_with_the_formulas(image: list[int], sigma: float, delta: float, neighbors: int) -> None:
    f, g, t = (rows(image, dim, seed) for dim, seed in ((3, 0), (5, 1), (5, 2)))
    weights = torch.tensor(alike(t, image * 2, sigma, 2 * neighbors), dtype=torch.float64)
    pairwise = pairwise_similarity(normalize(t, dim=1), sigma)
    ours = (pairwise + contextual_similarity(pairwise, torch.tensor(image * 2), 2 * neighbors)) / 2
    torch.testing.assert_close(ours, weights, rtol=1e-10, atol=1e-10)
    assert ours.min() >= 0
    assert ours.max() <= 1 + 1e-10

    f.requires_grad_()
    g.requires_grad_()
    for s in (f, g):
        assert_same(
            relaxed_contrastive_loss(relative_distances(s), ours, delta), relaxed(s, weights.tolist(), delta), s
        )
    assert_same(distillation_loss(relative_distances(f), relative_distances(g)), distilled(f, g), f)
    assert not distillation_loss(relative_distances(f.detach()), relative_distances(g)).requires_grad


def make(**changes: Any) -> STML:
    options: dict[str, Any] = {"sigma": 3, "delta": 1, "neighbors": 2, "momentum": 0.9, "g_dim": 5}
    dtype = changes.pop("dtype", torch.float64)
    torch.manual_seed(0)
    method = STML(**options | changes)
    method.setup(TrainingSet(40, 3, pretrained=True, labels=None, num_features=FEATURES))
    return method.to(dtype)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_a_step_agrees_with_the_formulas(image: list[int]) -> None:
    """The gradient of the embeddings, of the features through g, and of g."""
    method = make(sigma=0.7, delta=0.8)
    with torch.no_grad():
        method.teacher_weight.add_(0.3 * torch.randn_like(method.teacher_weight))
        method.teacher_bias.add_(0.1)
    f, features, taught = rows(image, 3, 0), rows(image, FEATURES, 1), rows(image, FEATURES, 2)
    f.requires_grad_()
    features.requires_grad_()
    found = method(f, torch.tensor(image), features, (taught, f.detach()))
    g = torch.stack([method.g.weight @ x + method.g.bias for x in features])
    t = torch.stack([method.teacher_weight @ x + method.teacher_bias for x in taught])
    expected = self_taught(f, g, t, image * 2, sigma=0.7, delta=0.8, k=4)
    assert found.keys() == expected.keys()
    assert_same(found["loss"], expected["loss"], f, features, method.g.weight, method.g.bias)
    for name in ("contrastive", "distillation"):
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-10, atol=1e-10)
        assert not found[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_have_a_finite_gradient(dtype: torch.dtype) -> None:
    """Pairs of equal rows, then nothing but equal rows."""
    some = rows([0, 1, 2, 3], 3, 0).to(dtype) * 100
    some[4:] = some[:4]
    for embeddings in (some, torch.ones(8, 3, dtype=dtype)):
        embeddings.requires_grad_()
        wide = torch.cat([embeddings, torch.ones(8, 4, dtype=dtype)], 1)
        step = make().to(dtype)
        loss = step(embeddings, torch.arange(4), wide, (wide.detach(), embeddings.detach()))["loss"]
        loss.backward()
        assert loss.isfinite()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        embeddings.grad = None


def test_in_float32_it_is_the_same_to_its_digits() -> None:
    image = IMAGES["some twice"]
    f, features, taught = rows(image, 3, 0), rows(image, FEATURES, 1), rows(image, FEATURES, 2)
    exact = make()(f, torch.tensor(image), features, (taught, f))["loss"]
    step = partial(make().float(), index=torch.tensor(image))
    for kind in (torch.float32, torch.bfloat16):  # of the features, under autocast
        rounded = step(f.float(), features=features.to(kind), teacher=(taught.to(kind), f.float()))["loss"]
        assert rounded.dtype == torch.float32
        assert rounded.item() == pytest.approx(exact.item(), rel=1e-5 if kind == torch.float32 else 2e-2)


def test_no_order_of_the_rows_decides() -> None:
    """Views of one image are equals for the k nearest, whichever stand first: ranks have them in another order."""
    image = torch.tensor(IMAGES["one four times"] * 2)
    pairwise = pairwise_similarity(normalize(rows(IMAGES["one four times"], 5, 0), dim=1), 0.5)
    found = contextual_similarity(pairwise, image, 4)
    for seed in range(5):
        order = torch.randperm(16, generator=Generator().manual_seed(seed))
        again = contextual_similarity(pairwise[order][:, order], image[order], 4)
        torch.testing.assert_close(again, found[order][:, order])


def test_the_heads_begin_orthogonal_and_the_teachers_as_a_copy_that_follows() -> None:
    method = make(momentum=0.75, dtype=torch.float32)  # as it is made, not converted
    torch.testing.assert_close(method.g.weight @ method.g.weight.T, torch.eye(5), atol=1e-6, rtol=0)
    assert not method.g.bias.any()
    assert torch.equal(method.teacher_weight, method.g.weight)
    assert {name for name, _ in method.named_parameters()} == {"g.weight", "g.bias"}
    before = method.g.weight.detach().clone()
    with torch.no_grad():
        method.g.weight.add_(1)
        method.g.bias.add_(2)
    method.after_step(torch.zeros(2, 3), torch.zeros(1))
    torch.testing.assert_close(method.teacher_weight, before + 0.25)
    torch.testing.assert_close(method.teacher_bias, torch.full((5,), 0.5))
    assert not any(buffer.requires_grad for buffer in method.buffers())


def test_batches_are_of_neighbours_in_g() -> None:
    method = make(neighbors=3)
    features = torch.randn(40, FEATURES, generator=Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        method.g.weight[0] *= 20  # a direction that decides
    asked: list[str] = []

    def extract(kind: str = "unit") -> tuple[Tensor, Tensor]:
        asked.append(kind)
        return features, features

    order = method.order(extract, Generator().manual_seed(0), 12)
    assert asked == ["pooled"]
    g = method.g(features).detach()
    for query, *others in order.view(-1, 3).tolist():
        assert [query, *others] == (g - g[query]).norm(dim=1).argsort()[:3].tolist()
    assert len(order) == 36
