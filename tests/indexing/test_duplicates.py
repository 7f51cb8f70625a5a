"""Near-duplicates: every pair, in groups, and a threshold that tells copies from what is merely alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_sample_images

from src.embedder import Embedder
from src.indexing import duplicates
from src.indexing.building import build
from src.indexing.duplicates import ALTERATIONS, choose_threshold, group, similar_pairs
from src.indexing.index import Index
from src.indexing.sources import find_source
from tests.indexing.conftest import points


def pairs_of(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> set[tuple[int, int]]:
    return set(zip(found[1].tolist(), found[2].tolist(), strict=True))


def test_every_pair_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    one, other = points(40, 4), points(23, 4, seed=1)
    told: list[int] = []
    found = similar_pairs(one, None, 0.8, told.append)
    truth = {(i, j) for i in range(40) for j in range(i + 1, 40) if one[i].astype(float) @ one[j] >= 0.8}
    assert pairs_of(found) == truth
    assert len(found[1]) == len(truth) > 10
    assert np.allclose(found[0], (one[found[1]] * one[found[2]]).sum(1), atol=1e-6)
    assert told == [7, 14, 21, 28, 35, 40]
    across = similar_pairs(one, other, 0.8)
    assert pairs_of(across) == {(i, j) for i in range(40) for j in range(23) if one[i].astype(float) @ other[j] >= 0.8}
    assert pairs_of(similar_pairs(one, None, -1)) == {(i, j) for i in range(40) for j in range(i + 1, 40)}
    monkeypatch.setattr(duplicates, "MOST", 100)
    with pytest.raises(ValueError, match=r"threshold=-1 finds more than 100 pairs"):
        similar_pairs(one, None, -1)


@pytest.mark.parametrize("across", [False, True])
def test_copies_of_a_file_are_found_without_comparing_them(monkeypatch: pytest.MonkeyPatch, across: bool) -> None:
    """Whoever is near to one is near to all; and all that are of one image are together, however many."""
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    drawn = points(30, 4)
    of = np.r_[np.arange(20), np.full(40, 3), np.full(5, 8)]  # the image that each row shows
    one, other = drawn[of], drawn[np.r_[np.arange(20), np.full(6, 3)]] if across else None
    copies = [np.c_[np.arange(20, 65), of[20:]], np.c_[np.arange(20, 26), np.full(6, 3)]]
    values, rows, columns = similar_pairs(one, other, 0.8, copies=copies)
    whole = similar_pairs(one, other, 0.8)
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(rows) < len(whole[1])
    second = one if other is None else other
    assert np.allclose(values, (one[rows] * second[columns]).sum(1), atol=1e-6)
    shift = len(one) if across else 0
    found, expected = (
        connected_components(coo_matrix((p[0], (p[1], p[2] + shift)), (100, 100)), directed=False)[1]
        for p in ((values, rows, columns), whole)
    )
    assert np.array_equal(found, expected), "the same groups"


def test_pairs_are_gathered_in_groups(index: Index) -> None:
    values, rows, others = (np.array(column) for column in ([0.96, 0.99, 0.97], [3, 10, 3], [5, 11, 8]))
    groups = group(index, None, (values, rows, others))
    assert [found.members for found in groups] == [[(0, 10), (0, 11)], [(0, 3), (0, 5), (0, 8)]]
    assert groups[1].similarity == pytest.approx([0.97, 0.96, 0.97])
    assert groups[1].identical == [False] * 3
    across = group(index, index, (values[:1], rows[:1], rows[:1]))
    assert across[0].members == [(0, 3), (1, 3)]
    assert across[0].identical == [True, True]
    assert group(index, None, (values[:0], rows[:0], others[:0])) == []


def test_the_threshold_tells_copies_best_from_what_is_alike(embedder: Embedder, tmp_path: Path) -> None:
    """Of blocks of colours with two copies among them, against every other threshold, from the images' files."""
    rng, folder = np.random.default_rng(0), tmp_path / "blocks"
    folder.mkdir()
    for number in range(80):
        blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        blocks.resize((96, 96), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    for number, name in ((3, "re-encoded"), (40, "half the size")):
        ALTERATIONS[name](Image.open(folder / f"{number}.png")).save(folder / f"{number}copy.png")
    build(embedder, find_source(str(folder)), tmp_path / "out")
    index = Index(tmp_path / "out")
    chosen = choose_threshold(index, embedder)
    nearest = index.vectors @ index.vectors.T
    np.fill_diagonal(nearest, -1)
    images = [Image.open(index.path(row)) for row in range(len(index))]
    likeness = {
        name: (embedder(alter(image) for image in images) * index.vectors).sum(1) for name, alter in ALTERATIONS.items()
    }

    def gain(at: float) -> float:
        copies = np.mean([(values >= at).mean() for values in likeness.values()])
        return float(copies - duplicates.WEIGHT * (nearest.max(1) >= at).mean())

    assert chosen.others == pytest.approx((nearest.max(1) >= chosen.value).mean(), abs=1e-6)
    for name, values in likeness.items():
        assert chosen.copies[name] == pytest.approx((values >= chosen.value - 1e-6).mean(), abs=0.02)
    assert gain(chosen.value - 1e-6) >= max(gain(at) for at in np.linspace(0.5, duplicates.SURE, 2000)) - 0.02
    assert chosen.copies["re-encoded"] > 0.9
    assert chosen.copies["half the size"] > 0.9
    found = group(index, None, similar_pairs(index.vectors, None, chosen.value))
    together = [{index.find(row).name for _, row in part.members} for part in found]
    assert {"3.png", "3copy.png"} in together
    assert {"40.png", "40copy.png"} in together
    assert len(together) < 5


def test_alterations_change_what_they_say() -> None:
    image = Image.fromarray(load_sample_images().images[0])
    altered = {name: alter(image) for name, alter in ALTERATIONS.items()}
    assert altered["half the size"].size == (320, 213)
    assert altered["cropped by 5%"].size == (608, 406)
    assert np.array_equal(np.asarray(altered["mirrored"])[:, ::-1], np.asarray(image))
    error = np.abs(np.asarray(altered["re-encoded"]).astype(int) - np.asarray(image)).mean()
    assert 0.5 < error < 10


def test_one_image_has_no_copies_to_tell(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    build(embedder, find_source(str(pictures / "0001.png")), tmp_path / "one")
    with pytest.raises(ValueError, match="has one image"):
        choose_threshold(Index(tmp_path / "one"), embedder)
    build(embedder, find_source(str(pictures)), tmp_path / "gone")
    for path in pictures.rglob("*.png"):
        path.unlink()
    with pytest.raises(OSError, match=r"give a number, such as threshold=0\.95"):
        choose_threshold(Index(tmp_path / "gone"), embedder)
