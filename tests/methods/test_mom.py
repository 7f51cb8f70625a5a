import warnings
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from src.methods.base import TrainingSet
from src.methods.mom import (
    Mined,
    MiningOnManifolds,
    diffuse,
    draw_triplets,
    find_anchors,
    hardest_negatives,
    mine,
    mom_loss,
    neighbor_graph,
)
from tests.methods.reference import assert_same, unit


def naive_graph(x: Tensor, k: int, power: float) -> Tensor:
    count = len(x)
    near = [sorted((j for j in range(count) if j != i), key=lambda j: -float(x[i] @ x[j]))[:k] for i in range(count)]
    graph = torch.zeros(count, count, dtype=x.dtype)
    for i in range(count):
        for j in near[i]:
            if i in near[j]:
                graph[i, j] = max(0.0, float(x[i] @ x[j])) ** power
    return graph


def test_the_graph_agrees_with_a_loop() -> None:
    x = unit(40, 4)
    graph = neighbor_graph(x, 6, 3).to_dense()
    torch.testing.assert_close(graph, naive_graph(x, 6, 3), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(graph, graph.T)


def test_anchors_are_the_modes_of_the_random_walk() -> None:
    """The stationary probability by walking, not by the degree."""
    x = unit(60, 3)
    graph = neighbor_graph(x, 10, 3)
    dense = graph.to_dense()
    walk = dense / dense.sum(1, keepdim=True).clamp(min=1e-12)
    lazy = 0.5 * (walk + torch.eye(60, dtype=x.dtype))
    inside = _component(dense)
    chance = torch.where(inside, 1.0 / inside.sum(), 0).double()
    for _ in range(20000):
        chance = chance @ lazy
    anchors = find_anchors(graph).tolist()
    for i in inside.nonzero().squeeze(1).tolist():
        around = chance[dense[i] > 0]
        assert (i in anchors) == bool((chance[i] >= around - 1e-9).all())
    assert 0 < len(anchors) < 30


def _component(dense: Tensor) -> Tensor:
    """The largest connected part."""
    reach = ((dense > 0).double() + torch.eye(len(dense), dtype=torch.float64)).matrix_power(len(dense)) > 0
    return reach[reach.sum(1).argmax()]


def test_an_image_without_a_neighbour_is_no_anchor_and_equals_are_all() -> None:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    graph = torch.sparse_coo_tensor(edges, torch.tensor([0.5, 0.5, 0.2, 0.2]), (5, 5), check_invariants=True).coalesce()
    assert find_anchors(graph).tolist() == [0, 1, 2, 3]
    alone = diffuse(graph, torch.tensor([4]), 0.99)
    assert alone.tolist() == [[0, 0, 0, 0, 1]], "a walk that goes nowhere"


def test_diffusion_solves_the_linear_system() -> None:
    graph = neighbor_graph(unit(50, 3), 10, 3)
    dense = graph.to_dense()
    degree = dense.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), 0)
    system = torch.eye(50, dtype=torch.float64) - 0.99 * scale.view(-1, 1) * dense * scale
    sources = torch.tensor([0, 7, 31])
    expected = torch.linalg.solve(system, torch.eye(50, dtype=torch.float64)[:, sources]).T
    torch.testing.assert_close(diffuse(graph, sources, 0.99, iterations=60), expected, rtol=1e-5, atol=1e-6)


def two_arcs() -> tuple[Tensor, Tensor]:
    """Two half circles on a sphere, one within the other's reach: their ends are near each other in space."""
    angle = torch.linspace(0, 3, 60, dtype=torch.float64)
    arc = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.9)], 1)
    other = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 1.35)], 1)
    points = torch.nn.functional.normalize(torch.cat([arc, other]), dim=1)
    return points, torch.arange(120) // 60


@pytest.mark.parametrize(
    ("anchors", "negative_k", "pool"), [("modes", 20, None), ("all", 12, None), ("all", 30, 5), ("all", 75, 20)]
)
def test_mining_agrees_with_a_loop(anchors: str, negative_k: int, pool: int | None) -> None:
    """Sets of neighbours, an anchor at a time: positives NN_m(k) less NN_e(k), negatives NN_e(l) less NN_m(l), of these
    the nearest in space.
    """
    points = torch.nn.functional.normalize(two_arcs()[0] + 1e-3 * unit(120, 3), dim=1)  # no two distances are equal
    mined = mine(points, anchors, k=20, negative_k=negative_k, pool=pool, graph_k=4, power=3, alpha=0.99)
    graph = neighbor_graph(points, 4, 3)
    found = {int(anchor): row for row, anchor in enumerate(mined.anchors)}
    assert set(found) <= set(find_anchors(graph).tolist() if anchors == "modes" else range(120))
    assert len(found) > (5 if anchors == "modes" else 60)
    left_out = 0
    for anchor in range(120) if anchors == "all" else found:
        manifold = diffuse(graph, torch.tensor([anchor]), 0.99)[0]
        others = [i for i in range(120) if i != anchor]
        in_space = sorted(others, key=lambda i: -float(points[anchor] @ points[i]))
        along = sorted((i for i in others if manifold[i] > 0), key=lambda i: -float(manifold[i]))
        positive = set(along[:20]) - set(in_space[:20])
        negatives = [i for i in in_space[:negative_k] if i not in along[:negative_k]]
        negative = set(negatives[:pool])
        left_out += len(negatives) - len(negative)
        assert (anchor in found) == bool(positive and negative)
        if anchor in found:
            row = found[anchor]
            assert set(mined.positives[row][mined.is_positive[row]].tolist()) == positive
            assert set(mined.negatives[row][mined.is_negative[row]].tolist()) == negative
            torch.testing.assert_close(mined.weight[row], manifold[mined.positives[row]])
    assert (left_out > 0) == (pool is not None)


def test_hard_pairs_lie_where_space_and_manifold_differ() -> None:
    points, labels = two_arcs()
    mined = mine(points, "modes", k=20, negative_k=20, pool=None, graph_k=4, power=3, alpha=0.99)
    own = labels[mined.anchors].unsqueeze(1)
    right = (labels[mined.positives] == own)[mined.is_positive].double().mean()
    wrong = (labels[mined.negatives] == own)[mined.is_negative].double().mean()
    assert right > 0.95, "far along the same arc"
    assert wrong < 0.2, "near, on the other arc"


POOLS = Mined(
    torch.tensor([4, 9]),
    torch.tensor([[1, 2, 3], [5, 6, 7]]),
    torch.tensor([[True, False, True], [False, True, False]]),
    torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
    torch.tensor([[8, 0, 1], [2, 3, 0]]),
    torch.tensor([[True, True, False], [False, False, True]]),
)


def test_triplets_come_from_the_pools() -> None:
    """Anchors take turns; one positive an anchor, whose weight is handed on; negatives for each place anew."""
    seen = set()
    for seed in range(20):
        drawn, weight = draw_triplets(POOLS, POOLS.is_negative, 101, Generator().manual_seed(seed))
        assert drawn.shape == (101, 3)
        assert sorted(drawn[:, 0].bincount()[[4, 9]].tolist()) == [50, 51]
        first = {1: 0.1, 3: 0.3}
        (positive,) = set(drawn[drawn[:, 0] == 4][:, 1].tolist())
        assert weight.tolist() == pytest.approx([first[positive], 0.5])
        seen |= set(map(tuple, drawn.tolist()))
    assert seen == {(4, 1, 8), (4, 3, 8), (4, 1, 0), (4, 3, 0), (9, 6, 0)}


def test_the_hardest_negatives_are_the_nearest_of_the_pool() -> None:
    embeddings = unit(10, 4)
    pools = Mined(*vars(POOLS).values())
    for count in (1, 2, 5):
        mask = hardest_negatives(pools, embeddings, count)
        for row, anchor in enumerate(pools.anchors.tolist()):
            pool = pools.negatives[row][pools.is_negative[row]].tolist()
            expected = sorted(pool, key=lambda i: -float(embeddings[anchor] @ embeddings[i]))[:count]
            assert set(pools.negatives[row][mask[row]].tolist()) == set(expected)


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_the_loss_agrees_with_a_loop(loss: str) -> None:
    z, total = unit(12, 5).requires_grad_(), torch.zeros((), dtype=torch.float64)
    for a, p, n in zip(*z.chunk(3), strict=True):
        near, far = (a - p).square().sum(), (a - n).square().sum()
        if loss == "triplet":
            total = total + torch.clamp(0.5 + near - far, min=0)
        else:
            total = total + near + torch.clamp(1.9 - far.sqrt(), min=0).square()
    margin = 0.5 if loss == "triplet" else 1.9
    assert_same(mom_loss(z, margin, loss), total / 4, z)
    weight = torch.tensor([0.2, 0.0, 3.0, 1.0], dtype=torch.float64)
    alone = [mom_loss(z[i::4], margin, loss) for i in range(4)]
    assert_same(mom_loss(z, margin, loss, weight), sum(w * one for w, one in zip(weight, alone, strict=True)) / 4, z)


def make(**options: Any) -> MiningOnManifolds:
    valid: dict[str, Any] = {
        "loss": "triplet",
        "margin": 0.5,
        "anchors": "all",
        "k": 20,
        "negative_k": 30,
        "pool": 50,
        "graph_k": 4,
        "power": 3,
        "alpha": 0.99,
        "weighted": True,
        "hardest": 3,
        "remine": False,
    }
    method = MiningOnManifolds(**valid | options)
    return method


def ready(**options: Any) -> MiningOnManifolds:
    method = make(**options)
    method.setup(TrainingSet(120, 8, pretrained=True, labels=None, num_features=8))
    return method


class Looking:
    """A pass that counts how often it was asked for, and whose features and embeddings may change."""

    def __init__(self, features: Tensor, embeddings: Tensor) -> None:
        self.features, self.embeddings, self.times = features, embeddings, 0

    def __call__(self, kind: str = "unit") -> tuple[Tensor, Tensor]:
        assert kind == "unit"
        self.times += 1
        return self.features, self.embeddings


def test_an_epoch_is_made_of_triplets_of_the_pools() -> None:
    """Mined once, in the first features; the nearest negatives by the embedding of the day; kept in checkpoints."""
    points, _ = two_arcs()
    look, method = Looking(points, unit(120, 8)), ready()
    mined = mine(points, "all", 20, 30, None, 4, 3, 0.99)
    for epoch in range(3):
        generator = Generator().manual_seed(epoch)
        companions = method.on_epoch_start(look, generator)
        allowed = hardest_negatives(mined, look.embeddings, 3)
        expected, weight = draw_triplets(mined, allowed, 120, Generator().manual_seed(epoch))
        assert torch.equal(companions, expected)
        torch.testing.assert_close(method.weight[mined.anchors], weight.float())
        look.features, look.embeddings = unit(120, 3, seed=9), unit(120, 8, seed=epoch + 1)
        other = ready()
        other.load_state_dict(method.state_dict())
        method = other
    assert look.times == 3


def test_mining_anew_looks_at_the_features_of_the_day() -> None:
    points, _ = two_arcs()
    look, method = Looking(points, unit(120, 8)), ready(remine=True, hardest=None, anchors="modes", negative_k=20)
    for epoch, features in enumerate((points, points.roll(7, 0))):
        look.features = features
        mined = mine(features, "modes", 20, 20, None, 4, 3, 0.99)
        expected, _ = draw_triplets(mined, mined.is_negative, 120, Generator().manual_seed(epoch))
        companions = method.on_epoch_start(look, Generator().manual_seed(epoch))
        assert torch.equal(companions, expected)
    assert look.times == 2
    once = ready(hardest=None)
    for _ in range(3):
        once.on_epoch_start(look, Generator())
    assert look.times == 3, "what was mined once needs no other look"


def test_a_step_weighs_each_triplet_by_its_positive() -> None:
    points, _ = two_arcs()
    z, index = unit(12, 5).requires_grad_(), torch.tensor([7, 3, 7, 90])
    weighted, even = ready(margin=0.7), ready(weighted=False, loss="contrastive", margin=1.3)
    for method in (weighted, even):
        method.on_epoch_start(Looking(points, unit(120, 8)), Generator().manual_seed(0))
    assert len(set(weighted.weight.tolist())) > 20
    assert_same(weighted(z, index)["loss"], mom_loss(z, 0.7, "triplet", weighted.weight[index]), z)
    assert_same(even(z, index)["loss"], mom_loss(z, 1.3, "contrastive"), z)


def test_what_it_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"30 nearest of an image, but there are 31 training images"):
        make().setup(TrainingSet(31, 8, pretrained=True, labels=None, num_features=8))
    with pytest.warns(UserWarning, match="not trained before") as warned:
        make().setup(TrainingSet(32, 8, pretrained=False, labels=None, num_features=8))
    assert [warning.filename for warning in warned] == [__file__], "of the caller, once"
    with warnings.catch_warnings(action="error"):
        make().setup(TrainingSet(32, 8, pretrained=True, labels=None, num_features=8))
    points = unit(30, 4)
    with pytest.raises(ValueError, match="no hard positives and negatives"):
        make(k=29, negative_k=29, graph_k=29).on_epoch_start(Looking(points, points), Generator())
