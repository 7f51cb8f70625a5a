"""What is found is what is nearest, in one index or in several, exactly or nearly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from src.embedder import Embedder, load
from src.indexing import approximate
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.searching import (
    Queries,
    find,
    from_images,
    from_index,
    from_vectors,
    is_index,
    load_network,
    open_indices,
)
from src.indexing.sources import find_source
from tests.indexing.conftest import points
from tests.test_embedder import changed


@pytest.fixture
def halves(embedder: Embedder, pictures: Path, tmp_path: Path) -> list[Index]:
    """Of the digits those in the folder, and those in the folder in it."""
    places = [tmp_path / name for name in ("first", "second")]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(pictures.glob("*.png"))))
    build(embedder, find_source(str(tmp_path / "list.txt")), places[0])
    build(embedder, find_source(str(pictures / "more")), places[1])
    return [Index(place) for place in places]


def asked(vectors: np.ndarray) -> Iterator[Queries]:
    yield Queries([str(row) for row in range(len(vectors))], [None] * len(vectors), vectors, None)


def test_several_indices_are_searched_as_one(index: Index, halves: list[Index]) -> None:
    whole = list(find([index], from_index(index, [3, 30], itself=False), 12))
    parts = list(find(halves, from_index(index, [3, 30], itself=False), 12))
    for one, other in zip(whole, parts, strict=True):
        assert one.query == other.query == one.hits[0].index.path(one.hits[0].row)
        assert [hit.index.path(hit.row) for hit in one.hits] == [hit.index.path(hit.row) for hit in other.hits]
        assert np.allclose([hit.similarity for hit in one.hits], [hit.similarity for hit in other.hits], atol=1e-6)
        truth = np.sort(index.vectors.astype(np.float64) @ index.vectors[one.hits[0].row])[::-1][:12]
        assert np.allclose([hit.similarity for hit in one.hits], truth, atol=1e-6)
    assert {hit.index.folder.name for hit in parts[0].hits} == {"first", "second"}


def test_an_index_does_not_find_its_own_query(index: Index) -> None:
    found = list(find([index], from_index(index, None, itself=True), 1))
    assert len(found) == 40
    assert all(result.hits[0].row != row for row, result in enumerate(found))
    similarity = index.vectors.astype(np.float64) @ index.vectors.T
    np.fill_diagonal(similarity, -2)
    assert np.allclose([result.hits[0].similarity for result in found], similarity.max(1), atol=1e-6)


def test_images_as_queries(
    index: Index, embedder: Embedder, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "more" / "0030.png").write_bytes(b"no image")
    found = list(find([index], from_images(str(pictures / "more"), embedder), 1))
    assert len(found) == 14
    assert all(result.hits[0].index.path(result.hits[0].row) == result.query for result in found)
    assert "0030.png" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"0030\.png can't be decoded"):
        list(from_images(str(pictures / "more" / "0030.png"), embedder))


def test_vectors_as_queries(index: Index, tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", 7 * index.vectors[[4, 5]].astype(np.float64))
    found = list(find([index], from_vectors(tmp_path / "some.npy", 128), 1))
    assert [result.hits[0].row for result in found] == [4, 5]
    assert found[0].hits[0].similarity == pytest.approx(1, abs=1e-6)
    for wrong in (np.zeros((2, 128)), points(2, 64), np.full(128, np.inf), np.ones(128, int), np.array([{}])):
        np.save(tmp_path / "wrong.npy", wrong, allow_pickle=True)
        with pytest.raises(ValueError, match=r"query=.*wrong\.npy"):
            list(from_vectors(tmp_path / "wrong.npy", 128))


def test_mistakes_are_named(index: Index, embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    assert is_index(index.folder)
    assert not is_index(pictures)
    with pytest.raises(ValueError, match=r"rows=40.*0 to 39"):
        list(from_index(index, [0, 40], itself=False))
    with pytest.raises(ValueError, match=r"k=41.*1 to 40"):
        list(find([index], asked(index.vectors[:1]), 41))
    other = load(changed(embedder.run, tmp_path / "other", lambda state: state["head.linear.bias"].add_(1)))
    build(other, find_source(str(pictures)), tmp_path / "others")
    with pytest.raises(ValueError, match="different networks"):
        open_indices([str(index.folder), str(tmp_path / "others")])
    with pytest.raises(ValueError, match="is not, or no longer, the network of"):
        load_network(index, str(other.run), "cpu")
    assert load_network(index, None, "cpu").fingerprint == embedder.fingerprint
    index.meta["run"] = str(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="run=PATH says where"):
        load_network(index, None, "cpu")


class Vectors:
    """As much of an index as a search needs."""

    def __init__(self, vectors: np.ndarray, folder: Path) -> None:
        self.vectors, self.folder = vectors, folder
        np.save(folder / "embeddings.npy", vectors)

    def __len__(self) -> int:
        return len(self.vectors)


def test_an_approximate_search_finds_as_many_as_are_asked_for(tmp_path: Path) -> None:
    """Where alike vectors lie in lists of fewer than k, and the other lists far off."""
    heaps = np.repeat(points(60, 32), 64, axis=0) + 0.01 * points(60 * 64, 32, seed=1)
    vectors = (heaps / np.linalg.norm(heaps, axis=1, keepdims=True)).astype(np.float32)
    index: list[Index] = [Vectors(vectors, tmp_path)]  # type: ignore[list-item]
    few = approximate._Copy(index[0], 50, tmp_path / "cache")
    few.lists.nprobe = 1
    own = torch.arange(300)
    values, rows = few.search(torch.from_numpy(vectors[:300]), 200, own)
    assert few.lists.nprobe == 1
    assert values.isfinite().all()
    assert (rows >= 0).all()
    assert (rows != own[:, None]).all()
    assert np.allclose(values, np.einsum("qkd,qd->qk", vectors[rows], vectors[:300]), atol=1e-6)


def test_what_an_approximate_search_misses_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index: list[Index] = [Vectors(points(20_000, 32), tmp_path)]  # type: ignore[list-item]
    vectors = points(300, 32, seed=1)
    found = list(approximate.find(index, asked(vectors), 10, tmp_path / "cache"))
    said = capsys.readouterr().err
    truth = np.sort(vectors @ index[0].vectors.T, axis=1)[:, -10]
    likeness = np.array([[hit.similarity for hit in row.hits] for row in found])
    share = (likeness >= truth[:, None] - 1e-6).mean()
    assert share > 0.9
    measured = float(said.split("approximate: ")[1].split("%")[0])
    assert measured >= 95
    assert abs(100 * share - measured) < 5
    rows = np.array([[hit.row for hit in row.hits] for row in found])
    assert np.allclose(likeness, np.einsum("qkd,qd->qk", index[0].vectors[rows], vectors), atol=1e-6)  # not rounded
    assert (np.diff(likeness) <= 0).all()
    copies = list((tmp_path / "cache").rglob("*.faiss"))
    assert len(copies) == 1
    monkeypatch.setattr(approximate, "GATHERED", 41 * 32 * 7)
    sliced = list(approximate.find(index, asked(vectors), 10, tmp_path / "cache"))
    assert [[hit.row for hit in row.hits] for row in sliced] == [[hit.row for hit in row.hits] for row in found]
    before = copies[0].stat().st_mtime_ns
    list(approximate.find(index, asked(vectors), 10, tmp_path / "cache"))
    assert copies[0].stat().st_mtime_ns == before
    np.save(tmp_path / "embeddings.npy", index[0].vectors[:-1])  # another index by now: another copy
    list(approximate.find(index, asked(vectors), 10, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.faiss"))) == 2
    for copy in (tmp_path / "cache").rglob("*.faiss"):
        copy.write_bytes(b"no index")
    with pytest.raises(OSError, match=r"faiss: .*make room, or delete it"):
        list(approximate.find(index, asked(vectors), 10, tmp_path / "cache"))
