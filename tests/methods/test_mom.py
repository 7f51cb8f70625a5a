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


def test_hard_pairs_lie_where_space_and_manifold_differ() -> None:
    points, labels = two_arcs()
    mined = mine(points, k=20, graph_k=4, power=3, alpha=0.99)
    assert len(mined.anchors) > 0
    own = labels[mined.anchors].unsqueeze(1)
    right = (labels[mined.positives] == own)[mined.is_positive].double().mean()
    wrong = (labels[mined.negatives] == own)[mined.is_negative].double().mean()
    assert right > 0.95, "far along the same arc"
    assert wrong < 0.2, "near, on the other arc"
    for row, anchor in enumerate(mined.anchors.tolist()):
        positive = mined.positives[row][mined.is_positive[row]].tolist()
        negative = mined.negatives[row][mined.is_negative[row]].tolist()
        assert positive
        assert negative
        assert not {anchor} & ({*positive} | {*negative})
        assert not {*positive} & {*mined.negatives[row].tolist()}, "a hard positive is no neighbour in space"
        assert not {*negative} & {*mined.positives[row].tolist()}, "a hard negative is none on the manifold"


def test_triplets_come_from_the_pools() -> None:
    mined = Mined(
        torch.tensor([4, 9]),
        torch.tensor([[1, 2, 3], [5, 6, 7]]),
        torch.tensor([[True, False, True], [False, True, False]]),
        torch.tensor([[8, 0, 1], [2, 3, 0]]),
        torch.tensor([[True, True, False], [False, False, True]]),
    )
    drawn = draw_triplets(mined, 101, Generator().manual_seed(0))
    assert drawn.shape == (101, 3)
    assert sorted(drawn[:, 0].bincount()[[4, 9]].tolist()) == [50, 51], "anchors take turns"
    assert set(map(tuple, drawn.tolist())) == {(4, 1, 8), (4, 3, 8), (4, 1, 0), (4, 3, 0), (9, 6, 0)}


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
def test_the_loss_agrees_with_a_loop(loss: str) -> None:
    z, total = unit(12, 5).requires_grad_(), torch.zeros((), dtype=torch.float64)
    for a, p, n in zip(*z.chunk(3), strict=True):
        near, far = (a - p).square().sum(), (a - n).square().sum()
        if loss == "triplet":
            total = total + torch.clamp(0.5 + near - far, min=0)
        else:
            total = total + near + torch.clamp(1.9 - far.sqrt(), min=0).square()
    assert_same(mom_loss(z, 0.5 if loss == "triplet" else 1.9, loss), total / 4, z)


def make(**options: float | str) -> MiningOnManifolds:
    valid = {"loss": "triplet", "margin": 0.5, "k": 20, "graph_k": 4, "power": 3, "alpha": 0.99}
    return MiningOnManifolds(**valid | options)  # type: ignore[arg-type]


def test_an_epoch_is_made_of_triplets() -> None:
    points, _ = two_arcs()
    companions = make().on_epoch_start(lambda: (points, points), Generator().manual_seed(0))
    assert companions.shape == (120, 3)


def test_what_it_needs_is_asked_for() -> None:
    for options in ({"loss": "soft"}, {"margin": 0}, {"k": 0}, {"alpha": 1}):
        with pytest.raises(ValueError, match=f"method.{next(iter(options))}="):
            make(**options)
    with pytest.raises(ValueError, match=r"20 nearest of an image, but there are 21 training images"):
        make().setup(TrainingSet(21, 8, pretrained=True, labels=None))
    with pytest.warns(UserWarning, match="not trained before"):
        make().setup(TrainingSet(22, 8, pretrained=False, labels=None))
    points = unit(30, 4)
    with pytest.raises(ValueError, match="no hard positives and negatives"):
        make(k=29, graph_k=29).on_epoch_start(lambda: (points, points), Generator())
