"""Pictures of an embedding, drawn from tensors: retrieved images, a map, histograms of similarities.

No colour says alone what matters (Okabe and Ito's blue and vermilion, Petroff's ten): lines are solid or dashed, points
have a shape, and a tick or a cross stands by each image.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import interpolate

# By grouping of the classes: `edges`, `same` and `other`, and its `scores`.
Histograms = Mapping[str, Mapping[str, Any]]

DPI = 160


class Look(NamedTuple):
    """How what is right, wrong or neither looks."""

    color: str
    line: Any  # as matplotlib has it
    mark: str


RIGHT, WRONG = Look("#0072B2", "-", "✓"), Look("#D55E00", (0, (2.5, 1.2)), "✗")
UNKNOWN = Look("black", "-", "")
# M. A. Petroff, Accessible color sequences for data visualization, arXiv:2107.02270; a shape each for print.
COLORS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
SHAPES = "os^vDP<X>*"


def resize(images: Tensor, side: int) -> Tensor:
    """Images `(N, S, S, 3)` uint8 as `(N, side, side, 3)`: pixels stay square where they become many, else smoothed."""
    planes = images.permute(0, 3, 1, 2)
    if 2 * planes.shape[2] <= side:
        return interpolate(planes, (side, side), mode="nearest-exact").permute(0, 2, 3, 1)
    smooth = interpolate(planes.float(), (side, side), mode="bilinear", antialias=True)
    return smooth.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def draw_retrieved(
    title: str, images: Tensor, labels: Tensor, similarity: Tensor, classes: Sequence[str], side: int = 128
) -> Figure:
    """Queries, each with its nearest images beside it, framed by whether they are of its class (paper, Figure 4).

    Args:
        title: stands above.
        images: `(Q, 1 + K, S, S, 3)` uint8, a query and its K nearest a row.
        labels: `(Q, 1 + K)`, of the images; -1 where unknown, nothing is then framed.
        similarity: `(Q, K)`, cosine of query and image.
        classes: names by label.
        side: of an image drawn, in pixels.
    """
    rows, columns = labels.shape
    blocks = 1 if rows <= 4 else 2  # side by side: as wide as a page
    gap, text, top = side // 6, side // 2, side * 5 // 8
    step, width = side + gap, columns * (side + gap) + 3 * gap
    canvas = np.full((top + -(-rows // blocks) * (step + text), blocks * width, 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))  # counted in pixels from its upper left corner
    axes.axis("off")
    axes.text(gap, top / 3, title, fontsize=9, va="center", parse_math=False)
    key = f"at the left the query; {RIGHT.mark} solid: its class; {WRONG.mark} dashed: another; cosine similarity"
    axes.text(gap, top / 3 + 24, key, fontsize=7, va="center", color="#555555")
    drawn = resize(images.flatten(0, 1), side).unflatten(0, (rows, columns)).numpy()
    for row, (own, *others) in enumerate(labels.tolist()):
        y = top + row // blocks * (step + text)
        for column, label in enumerate([own, *others]):
            x = gap + row % blocks * width + column * step + (column > 0) * gap
            canvas[y : y + side, x : x + side] = drawn[row, column]
            look, lines = UNKNOWN, [] if label == own and column else _wrap(classes, label)
            if column:
                look = UNKNOWN if min(label, own) < 0 else RIGHT if label == own else WRONG
                lines = [f"{look.mark} {similarity[row, column - 1]:.2f}".strip(), *lines]
            if look is not UNKNOWN:
                frame = Rectangle((x - 3, y - 3), side + 6, side + 6, fill=False, linewidth=2.2)
                frame.set(edgecolor=look.color, linestyle=look.line)
                axes.add_patch(frame)
            style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7, "linespacing": 1.05}
            axes.text(x + side / 2, y + side + 7, "\n".join(lines), color=look.color, parse_math=False, **style)
    axes.imshow(canvas, interpolation="none", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return figure


def _wrap(classes: Sequence[str], label: int) -> list[str]:
    """The name of a class in two short lines, none where it is unknown."""
    return textwrap.wrap(classes[label].replace("_", " "), 16, max_lines=2, placeholder="…") if label >= 0 else []


def project(points: Tensor, projection: Literal["tsne", "umap"], seed: int) -> NDArray[np.float32]:
    """Unit-norm embeddings `(N, D)` as `(N, 2)`: t-SNE, or UMAP (the extra `map`); the same for the same seed.

    Both run on one thread: on several t-SNE's sums depend on how many there are, and where others use the machine too
    it was measured to take ten times as long.

    Raises:
        ValueError: N is below 5.
    """
    if len(points) < 5:
        raise ValueError(f"a map of {len(points)} images: it takes five")
    array = points.float().cpu().numpy()
    spread = bool((array.std(0) > 1e-6).any())  # without any, PCA divides by zero
    options: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "init": "pca" if spread else "random"}
    with threadpool_limits(1):
        if projection == "umap":
            from umap import UMAP

            return np.asarray(UMAP(n_neighbors=min(15, len(array) - 1), **options).fit_transform(array))
        from sklearn.manifold import TSNE

        return np.asarray(TSNE(perplexity=min(30, (len(array) - 1) / 3), **options).fit_transform(array))


def cells(places: NDArray[np.float32], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of points `(N, 2)` in the unit square those nearest the middle of their cell, one a cell that has any.

    Returns:
        Their rows `(M,)`, and the cells `(M, 2)`, column and row from 0 to `count` - 1.
    """
    cell = (places * count).astype(np.intp).clip(0, count - 1)
    away = ((places * count - cell - 0.5) ** 2).sum(1)
    order = np.lexsort((away, cell[:, 0], cell[:, 1]))
    _, first = np.unique(cell[order] @ [1, count], return_index=True)
    return order[first], cell[order[first]]


def draw_map(
    title: str, points: NDArray[np.float32], images: Tensor, labels: Tensor, classes: Sequence[str], count: int = 26
) -> Figure:
    """A map of images: points by class at the left, and at the right at the same places images that hide none other.

    Args:
        title: stands above.
        points: `(N, 2)`.
        images: `(N, S, S, 3)` uint8.
        labels: `(N,)`; up to ten classes have a colour, a shape and a legend, more are shades of their number's.
        classes: names by label.
        count: images to a side, at most.
    """
    span = max(float((points.max(0) - points.min(0)).max()), 1e-12) * 1.04
    places = ((points - (points.max(0) + points.min(0)) / 2) / span + 0.5).astype(np.float32)
    present = labels[labels >= 0].unique().tolist()
    few = len(present) <= len(COLORS)
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 1, max(2, len(present))))
    looks = {label: (COLORS[i], SHAPES[i]) if few else (shades[i], "o") for i, label in enumerate(present)}
    looks |= {-1: ("#767676", ".")}

    side, frame = 32, 2
    cell = side + 2 * frame
    rows, where = cells(places, count)
    canvas = np.full((count * cell, count * cell, 3), 255, np.uint8)
    for row, image, (x, y) in zip(rows, resize(images[torch.from_numpy(rows)], side).numpy(), where, strict=True):
        box = canvas[(count - 1 - y) * cell :, x * cell :][:cell, :cell]
        if few:
            box[:] = np.array(matplotlib.colors.to_rgb(looks[int(labels[row])][0])) * 255
        box[frame:-frame, frame:-frame] = image

    figure = Figure(figsize=(11, 6.1 if few else 5.8), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    left, right = figure.subplots(1, 2)
    for label in [*present, *[-1] * bool((labels < 0).any())]:
        at = places[(labels == label).numpy()]
        color, shape = looks[label]
        name = classes[label] if label >= 0 else "no label"
        left.plot(*at.T, shape, color=color, markersize=4, markeredgewidth=0, alpha=0.85, label=_plain(name))
    right.imshow(canvas, interpolation="none", extent=(0, 1, 0, 1))
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])
    if few:
        figure.legend(loc="outside lower center", ncols=5 if len(present) > 5 else 10, frameon=False, markerscale=1.8)
    return figure


def draw_similarities(title: str, columns: Mapping[str, Histograms]) -> Figure:
    """Cosine similarities of nearest images of the same and of another class, a row a grouping (paper, Figures 5, 6).

    Args:
        title: stands above.
        columns: histograms of the network at several times, by the name of the time; the groupings are the last's.
    """
    groupings = list(list(columns.values())[-1])
    figure = Figure(figsize=(4.2 * len(columns), 0.5 + 2.7 * len(groupings)), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    panels = figure.subplots(len(groupings), len(columns), sharex=True, squeeze=False)
    bounds = []
    for row, grouping in zip(panels, groupings, strict=True):
        for axes, (name, histograms) in zip(row, columns.items(), strict=True):
            found = histograms.get(grouping)
            if not found:
                continue
            edges, same, other = (np.array(found[key]) for key in ("edges", "same", "other"))
            for values, look, label in ((same, RIGHT, "same"), (other, WRONG, "other")):
                axes.stairs(values, edges, fill=True, color=look.color, alpha=0.25)
                axes.stairs(values, edges, color=look.color, linestyle=look.line, linewidth=1.5, label=label)
            filled = np.flatnonzero(same + other)
            bounds += [edges[filled[0]], edges[filled[-1] + 1]] if len(filled) else []
            scores = ", ".join(f"{score} {value:.1f}%" for score, value in found["scores"].items())
            axes.set_title("\n".join(filter(None, [f"{name}: {grouping.replace('_', ' ')}", scores])), fontsize=9)
        row[0].set_ylabel("density")
    for axes in panels[-1]:
        axes.set_xlabel("cosine similarity")
    if bounds:
        panels[0, 0].set_xlim(min(bounds), max(bounds))
    panels[0, 0].legend(loc="upper left", frameon=False)
    return figure


def _plain(text: str) -> str:
    """A label that a legend shows as it is: `$` begins no formula, and a leading `_` does not leave it out."""
    return text.replace("$", r"\$").replace("_", " ")
