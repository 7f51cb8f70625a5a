import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from src.vectors import neighbors
from src.vectors.neighbors import nearest_neighbors, neighbor_batches, queries_at_once


@pytest.fixture(scope="module")
def points() -> Tensor:
    """1,797 real images as unit vectors `(1797, 64)`."""
    data = torch.tensor(load_digits().data)
    return normalize(data - data.mean(0), dim=1)


def naive(query: Tensor, gallery: Tensor, k: int, exclude_self: bool) -> list[list[int]]:
    """Sorted pairs, one query at a time; of equals the lower row first."""
    found = []
    for number, q in enumerate(query @ gallery.T):
        pairs = sorted((-s, row) for row, s in enumerate(q.tolist()) if not (exclude_self and row == number))
        found.append([row for _, row in pairs[:k]])
    return found


def test_against_scikit_learn(points: Tensor) -> None:
    gallery, query = points[:1500], points[1500:]
    similarity, rows = nearest_neighbors(query, gallery, 50)
    distance, expected = NearestNeighbors(n_neighbors=50, metric="cosine").fit(gallery).kneighbors(query)
    assert torch.allclose(similarity, 1 - torch.tensor(distance), atol=1e-12)
    assert (rows == torch.tensor(expected)).float().mean() > 0.999  # but for ties


@pytest.mark.parametrize("block", [1, 7, 1500, 10**6])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_chunks_change_nothing(points: Tensor, block: int, exclude_self: bool) -> None:
    some = points[:200]
    own = torch.arange(200) if exclude_self else None
    whole, part = (nearest_neighbors(some, some, 20, own, size) for size in (10**8, block))
    torch.testing.assert_close(whole, part)
    assert (whole[1] == torch.arange(200).unsqueeze(1)).any() != exclude_self


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8, 29])
def test_ties_follow_the_order_of_the_gallery(k: int, exclude_self: bool) -> None:
    """Duplicates and a few whole-numbered directions, whose similarities are exact."""
    axes = torch.cat([torch.eye(4), -torch.eye(4), torch.eye(4)]).double()
    images = axes[torch.randint(0, 12, (30,), generator=torch.Generator().manual_seed(k))]
    _, rows = nearest_neighbors(images, images, k, torch.arange(30) if exclude_self else None)
    assert rows.tolist() == naive(images, images, k, exclude_self)


def test_k_out_of_range_is_an_error(points: Tensor) -> None:
    ten = points[:10]
    assert nearest_neighbors(ten, ten, 10)[1].shape == (10, 10)
    assert nearest_neighbors(ten[:0], ten, 3)[1].shape == (0, 3)
    for k, own in ((11, None), (10, torch.arange(10)), (0, None)):
        with pytest.raises(ValueError, match=rf"k={k} .* 10 images"):
            nearest_neighbors(ten, ten, k, own)


def test_autocast_does_not_round_similarities(points: Tensor) -> None:
    some = points[:300].float()
    exact = nearest_neighbors(some, some, 20)
    with torch.autocast("cpu", torch.bfloat16):
        cast = nearest_neighbors(some, some, 20)
    assert torch.equal(exact[0], cast[0])
    assert torch.equal(exact[1], cast[1])


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (5, 2), (499, 11), (1797, 1), (1797, 30), (1797, 1797)])
def test_float32_on_a_cpu(points: Tensor, rows: int, k: int) -> None:
    """Its own way to the products, and every depth of the search by groups."""
    gallery = points[:rows].float()
    k = min(k, rows)
    similarity, found = nearest_neighbors(points[:40].float(), gallery, k)
    exact = points[:40] @ points[:rows].T
    torch.testing.assert_close(similarity.double(), exact.topk(k).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, found), similarity.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_search_by_blocks_finds_the_same(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "QUERIES", 7)
    generator = torch.Generator().manual_seed(0)
    gallery = normalize(torch.randn(101, 3, generator=generator), dim=1)
    gallery[50:60] = gallery[10]  # equals, in several blocks
    query = torch.cat([gallery[10:11], normalize(torch.randn(count - 1, 3, generator=generator), dim=1)])
    exact = query.double() @ gallery.double().T
    for rows in (4, 33, 1000):
        values, found = neighbors.search(query, gallery, 12, rows=rows)
        assert torch.allclose(values.double(), exact.sort(dim=1, descending=True).values[:, :12], atol=1e-6)
        assert torch.allclose(exact.gather(1, found), values.double(), atol=1e-6)
        assert found[0, :11].tolist() == [10, *range(50, 60)]
    own = torch.arange(count) * 3
    values, found = neighbors.search(gallery[own], gallery, 5, own, rows=9)
    expected = nearest_neighbors(gallery[own], gallery, 5, own)
    assert torch.allclose(values, expected[0], atol=1e-6)
    assert not (found == own[:, None]).any()
    assert neighbors.search(query, gallery, 1)[1][0].tolist() == [10]
    for k, mine, most in ((102, None, 101), (0, None, 101), (101, own, 100)):
        with pytest.raises(ValueError, match=rf"k={k} .* choose 1 to {most}"):
            neighbors.search(query, gallery, k, mine)


@pytest.mark.parametrize(("batch", "neighbors"), [(12, 3), (10, 2), (40, 5), (7, 7), (13, 4), (2, 3)])
def test_batches_are_random_images_with_their_nearest(points: Tensor, batch: int, neighbors: int) -> None:
    """Of any norm, so that the nearest by distance are not those by cosine."""
    some = 7 + points[:95] * torch.linspace(0.2, 3, 95, dtype=torch.float64).unsqueeze(1)
    found = neighbor_batches(some, batch, neighbors, torch.Generator().manual_seed(4))
    assert len(found) == 95 // batch * batch
    generator = torch.Generator().manual_seed(4)
    for images in found.view(-1, batch).tolist():
        rows = [images[start : start + neighbors] for start in range(0, batch, neighbors)]
        queries = torch.randperm(95, generator=generator)[: len(rows)].tolist()
        for query, row in zip(queries, rows, strict=True):
            assert row == sorted(range(95), key=lambda i: (some[query] - some[i]).norm().item())[: len(row)]


def test_an_image_comes_before_its_copies() -> None:
    copies = torch.ones(9, 3)
    rows = neighbor_batches(copies, 6, 3, torch.Generator().manual_seed(0)).view(-1, 3)
    queries = torch.randperm(9, generator=torch.Generator().manual_seed(0))[:2]
    assert rows[:, 0].tolist() == queries.tolist()
    assert all(len(set(row)) == 3 for row in rows.tolist())
    with pytest.raises(ValueError, match="k=0 neighbours"):
        neighbor_batches(copies, 6, 1, torch.Generator())


def test_batches_of_neighbours_in_float32_are_those_in_float64(points: Tensor) -> None:
    """Also where all lie in one direction, far from 0."""
    exact, rounded = (
        neighbor_batches(some, 60, 5, torch.Generator().manual_seed(0)) for some in (points + 10, (points + 10).float())
    )
    assert (exact == rounded).float().mean() > 0.999  # but for ties


def test_as_many_queries_at_once_as_fit_in_whole_vectors() -> None:
    gallery = torch.empty(1000, 4)
    assert queries_at_once(gallery, 2**20) == 1040, "a multiple of 16"
    assert queries_at_once(gallery, 5000) == 5
    assert queries_at_once(gallery, 10) == 1
    assert queries_at_once(gallery.to("meta"), 10) == 67_104, "an accelerator is kept busy"
