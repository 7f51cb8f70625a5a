"""Near-duplicates: pairs of images whose vectors are more similar than a threshold, in groups; and which threshold."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from src.datamodules.images import open_rgb
from src.embedder import Embedder
from src.indexing.index import Index
from src.vectors.neighbors import products, search

BLOCK = 2**13  # images compared with as many others at once, 256 MiB of similarities
MOST = 20_000_000  # pairs, 400 MB
NONE = np.empty((0, 2), np.int64)
COPIED, ASKED = 200, 2000  # images that are altered, and whose nearest other one is looked at
WEIGHT = 3  # how much worse a false pair is than a copy that is missed
SURE = 1 - 1e-4  # the most that a threshold can be chosen to be: a copy differs by rounding


# Similarities, rows of the first and rows of the second index, `(P,)` each.
Pairs = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


class Group(NamedTuple):
    """Images that are connected by similar pairs.

    Attributes:
        members: of each its index, 0 or 1, and its row.
        similarity: of each its largest to another one of the group.
        identical: of each whether another one's file has the same bytes.
    """

    members: list[tuple[int, int]]
    similarity: list[float]
    identical: list[bool]


class Threshold(NamedTuple):
    """A threshold chosen from the data.

    Attributes:
        value: it.
        copies: by what was done to them, the share of the images' copies at least as similar to their original.
        others: the share of the images at least as similar to another one of the index.
    """

    value: float
    copies: Mapping[str, float]
    others: float


def similar_pairs(
    one: NDArray[np.float32],
    other: NDArray[np.float32] | None,
    threshold: float,
    report: Callable[[int], object] = lambda compared: None,
    copies: Sequence[NDArray[np.int64]] = (NONE, NONE),
) -> Pairs:
    """Pairs of rows whose cosine similarity is at least `threshold`.

    Args:
        one: `(N, D)`, unit norm.
        other: `(M, D)`; None looks for pairs within `one`, each once and none with itself.
        report: is told after each block how many of its rows have been compared with all.
        copies: of `one`, and of the other, those in the first column are the same image as those in the second
            (`Index.copies`). They are not compared: within `one` they pair with it, and else with all that it does.
            Many copies of one image would else be too many pairs.

    Returns:
        Similarities, rows of `one` and rows of the other, `(P,)` each; within `one` the first is the lower row.

    Raises:
        ValueError: there are more than `MOST`.
    """
    found: list[Pairs] = []
    count = 0
    second = one if other is None else other
    for start in range(0, len(one), BLOCK):
        block = torch.from_numpy(one[start : start + BLOCK])
        for begin in range(start if other is None else 0, len(second), BLOCK):
            similarity = products(block, torch.from_numpy(second[begin : begin + BLOCK]))
            if other is None and begin == start:
                similarity = similarity.triu(1) - 2 * torch.ones_like(similarity).tril()  # below any similarity
            near = similarity >= threshold
            near[_within(copies[0], start, len(block))] = False
            near[:, _within(copies[0 if other is None else 1], begin, near.shape[1])] = False
            rows, columns = near.nonzero(as_tuple=True)
            count += len(rows)
            if count > MOST:
                raise ValueError(f"threshold={threshold:g} finds more than {MOST:,} pairs: raise it")
            found.append((similarity[rows, columns].numpy(), rows.numpy() + start, columns.numpy() + begin))
        report(min(start + BLOCK, len(one)))
    if other is None:
        found.append((np.ones(len(copies[0]), np.float32), copies[0][:, 1], copies[0][:, 0]))
    else:
        values, mine, theirs = _joined(found)
        copy, pair = _pairs_of(copies[0], mine)
        found.append((values[pair], copy, theirs[pair]))
        copy, pair = _pairs_of(copies[1], theirs)
        found.append((values[pair], mine[pair], copy))
    return _joined(found)


def _joined(found: Sequence[Pairs]) -> Pairs:
    values, rows, others = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return values, rows, others


def _within(copies: NDArray[np.int64], start: int, count: int) -> Tensor:
    """Places of copies in a block of rows."""
    rows = copies[:, 0]
    return torch.from_numpy(rows[(rows >= start) & (rows < start + count)] - start)


def _pairs_of(copies: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each copy each place in `rows` of the image that it is of: the copies, and the places, as often."""
    order = np.argsort(rows, kind="stable")
    first, last = (np.searchsorted(rows, copies[:, 1], side, order) for side in ("left", "right"))
    places = [order[start:end] for start, end in zip(first, last, strict=True)]
    return np.repeat(copies[:, 0], last - first), np.concatenate([np.empty(0, np.int64), *places])


def group(one: Index, other: Index | None, pairs: Pairs) -> list[Group]:
    """Pairs as groups, those with the most similar pair first, of equals the larger."""
    values, rows, columns = pairs
    columns = columns + (len(one) if other else 0)
    nodes, places = np.unique(np.concatenate([rows, columns]), return_inverse=True)
    first, second = places[: len(rows)], places[len(rows) :]
    graph = coo_matrix((np.ones(len(rows), bool), (first, second)), (len(nodes), len(nodes)))
    labels = connected_components(graph, directed=False)[1]
    largest = np.full(len(nodes), -1.0)
    np.maximum.at(largest, first, values)
    np.maximum.at(largest, second, values)
    groups = []
    order = np.argsort(labels, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []:
        members = [(0, int(node)) if node < len(one) else (1, int(node) - len(one)) for node in nodes[part]]
        hashes = [(other if which and other else one).find(row).hash for which, row in members]
        copies = Counter(hashes)
        identical = [copies[digest] > 1 for digest in hashes]
        groups.append(Group(members, largest[part].tolist(), identical))
    return sorted(groups, key=lambda group: (-max(group.similarity), -len(group.members), group.members))


def choose_threshold(index: Index, embedder: Embedder) -> Threshold:
    """The threshold that tells copies of the index's images from its other images best.

    Some images are altered as copies are in the wild (`ALTERATIONS`), and embedded. The threshold is the one with the
    largest share of copies at least as similar to their original, less `WEIGHT` times the share of images at least as
    similar to the nearest other one. Copies that are in the index already do little harm as long as they are few.

    Raises:
        OSError: its images are no longer there.
        ValueError: it has a single image.
    """
    random = np.random.default_rng(0)
    rows = random.permutation(len(index))
    asked = np.sort(rows[:ASKED])
    gallery, own = torch.from_numpy(index.vectors), torch.from_numpy(asked)
    if len(index) < 2:
        raise ValueError(f"{index.folder} has one image: threshold=auto needs others to tell copies from")
    others = search(torch.from_numpy(index.vectors[asked]), gallery, 1, own)[0].numpy()
    copied = np.sort(rows[:COPIED])
    try:
        altered = embedder(alter(index.open(row)) for row in copied.tolist() for alter in ALTERATIONS.values())
    except (OSError, ValueError, LookupError) as error:
        raise OSError(f"threshold=auto looks at the images: {error}; give a number, such as threshold=0.95") from error
    copies = np.einsum("nad,nd->an", altered.reshape(len(copied), len(ALTERATIONS), -1), index.vectors[copied])
    candidates = np.unique(copies.clip(max=SURE))
    gains = [(copies >= at).mean() - WEIGHT * (others >= at).mean() for at in candidates]
    value = float(candidates[int(np.argmax(gains))])
    shares = (copies >= value).mean(1).tolist()
    return Threshold(value, dict(zip(ALTERATIONS, shares, strict=True)), float((others >= value).mean()))


def _reencoded(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=50)
    content.seek(0)
    return open_rgb(content, "a copy")


def _resized(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def _cropped(image: Image.Image) -> Image.Image:
    """Of each side 95%, the lower right."""
    left, top = round(0.05 * image.width), round(0.05 * image.height)
    return image.crop((left, top, image.width, image.height))


ALTERATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": _reencoded,
    "half the size": _resized,
    "mirrored": ImageOps.mirror,
    "cropped by 5%": _cropped,
}
