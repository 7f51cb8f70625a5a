"""The pictures of a run: what is on them by naive loops, when they are drawn, and that nothing else changes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.nn.functional import normalize

from src.assemble import assemble, make_trainer
from src.callbacks.drawing import (
    COLORS,
    RIGHT,
    WRONG,
    cells,
    draw_map,
    draw_retrieved,
    draw_similarities,
    project,
    resize,
)
from src.callbacks.evaluation import Evaluation
from src.callbacks.history import History
from src.callbacks.pictures import Pictures, worst_failures
from src.datamodules.base import StoreDataModule
from src.datamodules.draws import draw_evenly
from src.metrics.knn import WeightedKNN
from src.metrics.retrieval import Retrieval
from src.running.figures import save
from tests.conftest import ROOT, datamodule_options, small_store


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def corner(canvas: Any, image: Any) -> list[int]:
    """Row and column where the image is on the canvas, whole and only once."""
    side = len(image)
    starts = np.argwhere((canvas[: 1 - side, : 1 - side] == image[0, 0]).all(2)).tolist()
    (found,) = ([y, x] for y, x in starts if (canvas[y : y + side, x : x + side] == image).all())
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


# What is drawn of which images


@pytest.mark.parametrize("count", [1, 7, 12, 25, 40])
def test_an_even_draw_takes_as_many_of_each_class(count: int) -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [5] * 17)[torch.randperm(40, generator=torch.Generator().manual_seed(3))]
    state = torch.get_rng_state()
    rows = draw_evenly(labels, count, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(rows.unique()) == count
    assert torch.equal(rows, rows.sort().values)
    taken = labels[rows].bincount(minlength=6)[[0, 1, 5]].tolist()
    for size, mine in zip((20, 3, 17), taken, strict=True):
        assert mine == size or mine >= max(taken) - 1, taken


def test_the_seed_decides_which_are_drawn() -> None:
    labels = torch.arange(300) % 100
    drawn = [draw_evenly(labels, 8, seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(labels[drawn[0]].sort().values, labels[drawn[2]].sort().values), "other classes too"
    assert len(draw_evenly(labels, 1000, 0)) == 300


def test_the_worst_failures_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, found = (torch.randint(-1, 3, (60,), generator=generator) for _ in range(2))
    similarity = torch.rand(60, generator=generator)
    wrong = [i for i in range(60) if labels[i] >= 0 and found[i] >= 0 and labels[i] != found[i]]
    wrong.sort(key=lambda i: -float(similarity[i]))
    assert worst_failures(labels, found, similarity, 5).tolist() == wrong[:5]
    assert worst_failures(labels, found, similarity, 100).tolist() == wrong
    assert not len(worst_failures(labels, labels, similarity, 5))


@pytest.mark.parametrize("count", [4, 5])
def test_a_cell_shows_the_image_nearest_its_middle(count: int) -> None:
    places = np.random.default_rng(0).random((200, 2), dtype=np.float32)
    places[0], places[1] = (0, 0), (1, 1)  # the borders belong to a cell too
    rows, where = cells(places, count)
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for row, (x, y) in enumerate(places.tolist()):
        cell = (min(int(x * count), count - 1), min(int(y * count), count - 1))
        away = (x * count - cell[0] - 0.5) ** 2 + (y * count - cell[1] - 0.5) ** 2
        best[cell] = min(best.get(cell, (9.0, 0)), (away, row))
    assert {tuple(cell): row for cell, row in zip(where.tolist(), rows.tolist(), strict=True)} == {
        cell: row for cell, (_, row) in best.items()
    }


# How it looks


def test_small_images_keep_their_pixels_and_large_ones_are_averaged() -> None:
    small = noise(2, 8, 8, 3)
    assert torch.equal(resize(small, 32), small.repeat_interleave(4, 1).repeat_interleave(4, 2))
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(128).expand(1, 3, 256, 256).permute(0, 2, 3, 1)
    assert resize(stripes, 32).float().sub(127.5).abs().max() < 8, "no stripe is skipped"
    assert resize(noise(1, 256, 256, 3), 32).float().std() < 15, "all 64 of a pixel's count, four of them leave 37"
    for level in (0, 255):
        assert (resize(torch.full((1, 50, 50, 3), level, dtype=torch.uint8), 32) == level).all()


def test_pixels_stay_square_from_twice_the_size_on() -> None:
    half, odd, large = noise(1, 16, 16, 3), noise(1, 5, 5, 3), noise(1, 17, 17, 3)
    assert torch.equal(resize(half, 32), half.repeat_interleave(2, 1).repeat_interleave(2, 2))
    middle = ((torch.arange(16) + 0.5) * 5 / 16).long()
    assert torch.equal(resize(odd, 16), odd[:, middle][:, :, middle])
    assert not torch.equal(resize(large, 33)[:, ::2, ::2], large), "a mixture"


@pytest.mark.parametrize("rows", [1, 4, 5, 6])
def test_more_than_four_queries_stand_in_two_blocks(rows: int) -> None:
    images = noise(rows, 3, 8, 8, 3)
    figure = draw_retrieved("title", images, torch.zeros(rows, 3).long(), torch.ones(rows, 2), ["a"], side=16)
    (canvas,) = (np.asarray(image.get_array()) for image in figure.axes[0].images)
    places = np.array([corner(canvas, one) for one in resize(images.flatten(0, 1), 16).numpy()])
    y, x = places.T.reshape(2, rows, 3)
    blocks = 1 if rows <= 4 else 2
    for row in range(rows):
        assert (y[row] == y[row, 0]).all()
        assert x[row, 2] - x[row, 1] > 16, "no two touch"
        assert x[row, 1] - x[row, 0] > x[row, 2] - x[row, 1], "the query stands apart"
        assert (x[row] - x[0] == row % blocks * canvas.shape[1] // blocks).all()
        assert (y[row, 0] - y[0, 0]) == row // blocks * (y[blocks, 0] - y[0, 0] if rows > blocks else 0)
    assert y.min() <= 16, "little is above,"
    assert 16 <= canvas.shape[0] - y.max() <= 32, "nor below, but for the captions"
    assert (figure.get_size_inches() * figure.dpi).round().tolist() == [*canvas.shape[1::-1]]


def test_captions_stand_below_their_images_and_frames_around_them() -> None:
    images, labels = noise(6, 3, 8, 8, 3), torch.tensor([[0, 0, 1]]).repeat(6, 1)
    figure = draw_retrieved("title", images, labels, torch.ones(6, 2), ["a", "$b$"])
    (axes,) = figure.axes
    (image,) = axes.images
    canvas = np.asarray(image.get_array())
    assert axes.get_position().bounds == (0, 0, 1, 1)
    assert image.get_extent() == [0, canvas.shape[1], canvas.shape[0], 0], "a pixel of the canvas is one of the figure"
    title, key, *captions = axes.texts
    assert 0 < title.get_position()[1] < key.get_position()[1]
    frames = iter(axes.patches)
    drawn = resize(images.flatten(0, 1), 128).numpy()
    for number, (caption, thumbnail) in enumerate(zip(captions, drawn, strict=True)):
        y, x = corner(canvas, thumbnail)
        assert key.get_position()[1] < y, "nothing is drawn over the title"
        assert caption.get_position()[0] == x + 64
        assert y + 128 < caption.get_position()[1] < y + 128 + 20
        assert (caption.get_horizontalalignment(), caption.get_verticalalignment()) == ("center", "top")
        if number % 3:  # the query has no frame
            frame = next(frames)
            assert isinstance(frame, Rectangle)
            assert (frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2) == (x + 64, y + 64)
            assert 128 < frame.get_width() == frame.get_height() < 128 + 128 // 6, "it touches no other"
            assert caption.get_color() == (RIGHT, WRONG)[number % 3 - 1].color
    assert not any(text.get_parse_math() for text in (title, *captions)), "$ is a letter"


def test_a_long_name_takes_two_lines() -> None:
    names = ["a", "red_headed_black_bird_of_the_marshes_and_the_plains"]
    figure = draw_retrieved("title", noise(1, 2, 8, 8, 3), torch.tensor([[0, 1]]), torch.ones(1, 1), names)
    assert texts(figure)[-1].split("\n") == ["✗ 1.00", "red headed black", "bird of the…"]


def test_right_and_wrong_differ_in_colour_line_and_mark() -> None:
    labels = torch.tensor([[0, 0, 1, -1], [-1, 0, -1, 1]])
    similarity = torch.tensor([[0.987, 0.5, -0.25], [0.9, 0.8, 0.7]])
    images = noise(2, 4, 8, 8, 3)
    figure = draw_retrieved("title $x", images, labels, similarity, ["a_dog", "$wolf_" + "z" * 40], side=16)
    frames = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    looks = [(matplotlib.colors.to_hex(frame.get_edgecolor()), frame.get_linestyle()) for frame in frames]
    assert [color for color, _ in looks] == [RIGHT.color.lower(), WRONG.color.lower()]
    assert looks[0][1] != looks[1][1]
    title, _, query, right, wrong, unknown, *rest = texts(figure)
    assert (title, query, right, unknown) == ("title $x", "a dog", "✓ 0.99", "-0.25")
    assert wrong.split("\n")[0] == "✗ 0.50"
    assert all(len(line) <= 16 for line in wrong.split("\n")[1:])
    assert rest[0] == "", "a query without a label"
    assert not any(mark in text for text in rest for mark in "✓✗")
    (canvas,) = (image.get_array() for image in figure.axes[0].images)
    assert canvas is not None
    for thumbnail in resize(images.flatten(0, 1), 16).numpy():
        assert corner(canvas, thumbnail), "each image is there once, whole"


@pytest.mark.parametrize("classes", [3, 10, 11, 40])
def test_a_map_has_a_legend_where_classes_are_few(classes: int) -> None:
    points = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    labels = torch.arange(80) % (classes + 1) - 1  # some have none
    names = [f"_{number}$" for number in range(classes)]
    figure = draw_map("map", points, noise(80, 8, 8, 3), labels, names, count=12)
    left, right = figure.axes
    assert sum(np.size(line.get_xdata()) for line in left.lines) == 80
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legend == ([f" {number}\\$" for number in range(classes)] + ["no label"] if classes <= 10 else [])
    if classes <= 10:
        assert len({(line.get_color(), line.get_marker()) for line in left.lines}) == classes + 1
        assert {line.get_color() for line in left.lines} <= {*COLORS, "#767676"}
    (canvas,) = (image.get_array() for image in right.images)
    assert canvas is not None
    assert (np.asarray(canvas) != 255).any()


def test_a_map_keeps_the_shape_and_shows_the_images_where_the_points_are() -> None:
    """Three points of which two are of one class, a thousandth apart: x twice as far as y, and 2% of margin."""
    points = np.array([[5.0, 7.0], [5.001, 7.0], [5.002, 7.001]], np.float32)
    images = noise(3, 32, 32, 3)
    left, right = draw_map("map $", points, images, torch.tensor([3, 3, 8]), [str(n) for n in range(9)], count=5).axes
    assert left.figure.get_suptitle() == "map $"
    first, second = (np.asarray(line.get_xydata()) for line in left.lines)
    width, height = 0.5 / 1.04, 0.25 / 1.04
    np.testing.assert_allclose(first, [[0.5 - width, 0.5 - height], [0.5, 0.5 - height]], atol=2e-4)
    np.testing.assert_allclose(second, [[0.5 + width, 0.5 + height]], atol=2e-4)
    for axes in (left, right):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))
        assert axes.get_aspect() == 1
    (shown,) = right.images
    assert shown.get_extent() == [0, 1, 0, 1]
    canvas = np.asarray(shown.get_array())
    assert canvas.shape == (5 * 36, 5 * 36, 3)
    for image, line, (x, y) in zip(images.numpy(), left.lines[:1] * 2 + left.lines[1:], [*first, *second], strict=True):
        column, row = int(x * 5), 4 - int(y * 5)
        cell = canvas[row * 36 : row * 36 + 36, column * 36 : column * 36 + 36]
        assert (cell[2:-2, 2:-2] == image).all()
        frame = (np.array(matplotlib.colors.to_rgb(line.get_color())) * 255).astype(np.uint8)
        assert (cell[[0, 1, -1], :] == frame).all(), "its class's colour around it"
        canvas[row * 36 : row * 36 + 36, column * 36 : column * 36 + 36] = 255
    assert (canvas == 255).all(), "and nothing else"


def test_many_classes_are_shades_from_the_first_to_the_last() -> None:
    points = np.random.default_rng(0).normal(size=(22, 2)).astype(np.float32)
    figure = draw_map("map", points, noise(22, 8, 8, 3), torch.arange(22) % 11, ["x"] * 11)
    colours = np.array([matplotlib.colors.to_rgba(line.get_color()) for line in figure.axes[0].lines])
    np.testing.assert_allclose(colours, matplotlib.colormaps["cividis"](np.linspace(0, 1, 11)))
    assert {line.get_marker() for line in figure.axes[0].lines} == {"o"}


def test_where_all_have_a_label_none_is_said_to_lack_it() -> None:
    points = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    figure = draw_map("map", points, noise(6, 8, 8, 3), torch.arange(6) % 2, ["a", "b"])
    assert [line.get_label() for line in figure.axes[0].lines] == ["a", "b"]


def histogram(*counts: float) -> dict[str, Any]:
    return {"edges": [-1.0, 0.0, 0.5, 1.0], "same": list(counts), "other": list(counts[::-1])}


def test_histograms_stand_beside_the_untrained_networks(tmp_path: Path) -> None:
    def both(auc: float) -> dict[str, Any]:
        scores = {"AUC": auc, "overlap": 2 * auc / 3}
        return {"classes": histogram(0, 1, 1) | {"scores": scores}, "by_size": histogram(1, 0, 1) | {"scores": {}}}

    figure = draw_similarities("similarity", {"untrained": both(60.0), "epoch 2": both(90.0)})
    titles = ["untrained: classes\nAUC 60.0%, overlap 40.0%", "epoch 2: classes\nAUC 90.0%, overlap 60.0%"]
    assert [axes.get_title() for axes in figure.axes] == [*titles, "untrained: by size", "epoch 2: by size"]
    assert figure.axes[0].get_xlim() == (-1, 1)
    patches: list[Any] = list(figure.axes[0].patches)
    drawn = [np.asarray(patch.get_data().values).tolist() for patch in patches]
    assert drawn == [[0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert [patch.get_fill() for patch in patches] == [True, False, True, False]
    assert [patch.get_label() for patch in patches[1::2]] == ["same", "other"]
    assert patches[1].get_linestyle() != patches[3].get_linestyle()
    for patch, look in zip(patches, (RIGHT, RIGHT, WRONG, WRONG), strict=True):
        colour = patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()
        assert matplotlib.colors.to_hex(colour) == look.color.lower()
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "cosine similarity", "cosine similarity"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["density", "", "density", ""]
    late = {"classes": {"edges": [-1.0, 0.0, 0.5, 1.0], "same": [0, 1, 1], "other": [0, 1, 0], "scores": {}}}
    assert draw_similarities("from where there is something", {"epoch 1": late}).axes[0].get_xlim() == (0, 1)
    empty = {"classes": histogram(0, 0, 0) | {"scores": {}}}
    save(draw_similarities("a metric that has no pair", {"epoch 0": empty}), tmp_path / "empty")


def test_the_same_picture_is_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        figure = draw_retrieved("鳥", noise(2, 3, 8, 8, 3), torch.ones(2, 3).long(), torch.ones(2, 2), ["a", "鳥"])
        save(figure, tmp_path / folder / "picture")
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert files[0] == files[1]
    assert files[0].keys() == {"picture.png", "picture.svg"}
    assert files[0]["picture.png"].startswith(b"\x89PNG")
    assert files[0]["picture.svg"].count(b"<image") == 1, "all the thumbnails are embedded at once"


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "picture.png" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match=r"picture\.png"):
        save(Figure(), tmp_path / "picture")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


# Where a map's points lie


def agreement(points: Tensor, labels: Tensor) -> float:
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    return (labels[nearest] == labels).float().mean().item()


@pytest.mark.parametrize("projection", ["tsne", "umap"])
def test_neighbours_stay_neighbours_on_a_map(digits: tuple[Tensor, Tensor], projection: Any) -> None:
    if projection == "umap":
        pytest.importorskip("umap", reason="the extra `map` is not installed")
    points, labels = digits[0][:300].float(), digits[1][:300]
    states = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    threads = torch.get_num_threads()
    maps = [project(points, projection, seed) for seed in (0, 0, 1)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2]) or projection == "tsne", "PCA starts t-SNE, not the seed"
    assert agreement(torch.from_numpy(maps[0]), labels) > 0.85  # by chance 0.1
    assert states[0] == np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(states[1], torch.get_rng_state())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("count", "perplexity"), [(300, 30), (91, 30), (40, 13), (5, 4 / 3)])
def test_a_map_looks_at_as_many_neighbours_as_there_are(
    monkeypatch: pytest.MonkeyPatch, count: int, perplexity: float
) -> None:
    """Also of features in half precision."""
    given: dict[str, Any] = {}

    class Map:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        def fit_transform(self, array: Any) -> Any:
            return array[:, :2]

    monkeypatch.setattr("sklearn.manifold.TSNE", Map)
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert project(points, "tsne", 7).dtype == np.float32
    assert given == {"perplexity": pytest.approx(perplexity), "random_state": 7, "n_jobs": 1, "init": "pca"}


@pytest.mark.parametrize(
    "points", [torch.ones(40, 4) / 2, torch.eye(2).repeat(20, 1), normalize(torch.eye(5), dim=1), torch.ones(30, 1)]
)
def test_a_collapsed_embedding_has_a_map(points: Tensor) -> None:
    assert np.isfinite(project(points, "tsne", 0)).all()
    with pytest.raises(ValueError, match="a map of 4 images: it takes five"):
        project(points[:4], "tsne", 0)


# When


class Linear(pl.LightningModule):
    """Embeds an image's pixels by a fixed matrix; training changes nothing that is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.whitening = None
        self.register_buffer("matrix", torch.randn(192, 6, generator=torch.Generator().manual_seed(0)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        found = normalize((batch["image"].contiguous().flatten(1) - 127) @ self.matrix, dim=1)  # type: ignore[operator]
        return {"index": batch["index"], "label": batch["label"], "embedding": found, "features": -found}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Counted(Evaluation):
    """Has histograms, as where a metric counts them."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        pl_module.log("similarity/AUC", 10.0 + trainer.current_epoch)
        pl_module.log("similarity/overlap", 5.0)
        self.histograms = {self.space: {"classes": histogram(0, 1, 1)}}


def pictures(**changes: Any) -> Pictures:
    options: dict[str, Any] = {"queries": 5, "neighbors": 3, "epochs": [1], "images": 50, "projection": "tsne"}
    return Pictures(**(options | {"seed": 0} | changes))


def datamodule(folder: Path, gallery: bool, test: int = 24) -> StoreDataModule:
    if not (folder / "store").exists():
        small_store(folder / "store", train=40, test=test)
    made = StoreDataModule(**datamodule_options(folder, gallery=gallery, image_size=8))
    made.setup()
    return made


def trainer(folder: Path, callback: Pictures, gallery: bool = True, logger: Any = False, **options: Any) -> pl.Trainer:
    metric, monitor = (WeightedKNN(k=5), "knn/top1") if gallery else (Retrieval((1,)), "retrieval/R@1")
    return pl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[Counted({monitor.split("/")[0]: metric}, {}, "embedding", monitor), callback],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def whole(folder: Path, callback: Pictures, gallery: bool = True, every: int = 1, epochs: int = 3) -> None:
    """A run, as src.train has it: the untrained network, the training, and the last epoch if that was not scored."""
    run = trainer(folder, callback, gallery, max_epochs=epochs, check_val_every_n_epoch=every)
    module, data = Linear(), datamodule(folder, gallery)
    run.validate(module, data, verbose=False)
    run.fit(module, data)
    if epochs % every:
        run.validate(module, data, verbose=False)


@pytest.mark.parametrize("gallery", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_pictures_of_chosen_epochs_and_the_last(tmp_path: Path, gallery: bool, every: int) -> None:
    callback = pictures(epochs=[1])
    whole(tmp_path, callback, gallery, every)
    drawn = [(picture["kind"], picture["epoch"]) for picture in callback.pictures]
    last = [("gallery", 3), ("failures", 3), ("map", 3), ("similarity", 3)]
    assert drawn == [("map", 0), *[("gallery", 1)] * (every == 1), *last]
    files = {str(path.relative_to(tmp_path)) for path in (tmp_path / "figures").iterdir()}
    assert files == {picture[kind] for picture in callback.pictures for kind in ("png", "svg")}
    assert callback.pictures[0] | {"title": ""} == {
        "title": "",
        "kind": "map",
        "epoch": 0,
        "png": "figures/map-epoch-0.png",
        "svg": "figures/map-epoch-0.svg",
    }
    assert callback.pictures[0]["title"] == "t-SNE of 24 test images, untrained network (embedding)"
    for picture in callback.pictures:
        with Image.open(tmp_path / picture["png"]) as image:
            assert min(image.size) > 300
    assert callback.untrained["classes"]["scores"] == {"AUC": 10.0, "overlap": 5.0}


@pytest.mark.parametrize("gallery", [True, False])
def test_a_gallery_shows_the_nearest_of_the_same_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gallery: bool
) -> None:
    drawn: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def draw(title: str, images: Tensor, labels: Tensor, similarity: Tensor, classes: list[str]) -> Figure:
        drawn.append((title, images, labels, similarity))
        return draw_retrieved(title, images, labels, similarity, classes)

    monkeypatch.setattr("src.callbacks.drawing.draw_retrieved", draw)
    whole(tmp_path, pictures(epochs=[0]), gallery, epochs=1)
    splits = datamodule(tmp_path, gallery).store.splits  # type: ignore[union-attr]
    query, searched = splits["test"], splits["train" if gallery else "test"]

    def embed(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).flatten(1).double() - 127
        return normalize(pixels @ Linear().matrix.double(), dim=1)  # type: ignore[operator]

    similarity = embed(query.images) @ embed(searched.images).T
    if not gallery:
        similarity.fill_diagonal_(-2)
    nearest = similarity.sort(descending=True).indices[:, :3]
    titles = ["Queries and their nearest images, untrained network", "Queries and their nearest images, epoch 1"]
    assert [title for title, *_ in drawn] == [
        f"{title} (embedding)" for title in [*titles, "Worst failures, most similar first, epoch 1"]
    ]
    assert torch.equal(drawn[0][1], drawn[1][1]), "the same queries"
    for _, images, labels, shown in drawn:
        assert images.shape == (5, 4, 8, 8, 3)
        for row in range(5):
            (number,) = (query.images == images[row, 0]).all((1, 2, 3)).nonzero().flatten().tolist()
            assert torch.equal(images[row, 1:], searched.images[nearest[number]])
            assert labels[row].tolist() == [int(query.labels[number]), *searched.labels[nearest[number]].tolist()]
            expected = similarity[number, nearest[number]].tolist()
            assert shown[row].tolist() == pytest.approx(expected, abs=1e-5)
    failures, classes = drawn[2], drawn[0][2][:, 0]
    assert (failures[2][:, 0] != failures[2][:, 1]).all()
    assert (failures[3][:-1, 0] >= failures[3][1:, 0]).all()
    assert classes.bincount().tolist() in ([2, 2, 1], [2, 1, 2], [1, 2, 2]), "evenly from three classes"


def test_images_are_shown_as_the_evaluation_sees_them(tmp_path: Path) -> None:
    small_store(tmp_path / "store", train=40)
    data = StoreDataModule(**datamodule_options(tmp_path, image_size=4, limit=10))
    data.setup()
    rows = torch.tensor([5, 0])
    for loader, split, take in zip(
        data.val_dataloader(), ("test", "train"), (data.query_images, data.gallery_images), strict=True
    ):
        batches = [data.clean(batch, split)["image"] for batch in loader]  # mean 0, deviation 1
        assert torch.equal(take(rows).permute(0, 3, 1, 2).float(), torch.cat(batches)[rows])


def test_fewer_images_than_asked_for(tmp_path: Path) -> None:
    small_store(tmp_path / "store", train=40, test=4)
    callback = pictures(queries=100, neighbors=100)
    whole(tmp_path, callback, gallery=False, epochs=0)
    assert {picture["kind"] for picture in callback.pictures} <= {"gallery", "failures", "similarity"}, "no map"
    assert callback.pictures


@pytest.mark.parametrize(("test", "maps"), [(4, 0), (5, 1)])
def test_a_map_takes_five_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: int, maps: int) -> None:
    drawn: list[Tensor] = []

    def draw(title: str, points: Any, images: Tensor, labels: Tensor, classes: list[str]) -> Figure:
        drawn.append(labels)
        return Figure()

    monkeypatch.setattr("src.callbacks.drawing.draw_map", draw)
    small_store(tmp_path / "store", train=40, test=test)
    whole(tmp_path, pictures(), epochs=0)
    assert [len(labels) for labels in drawn] == [5] * maps


@pytest.mark.parametrize(("epochs", "names"), [(0, ["epoch 0"]), (2, ["untrained", "epoch 2"])])
def test_similarities_stand_beside_the_untrained_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, names: list[str]
) -> None:
    drawn: list[dict[str, Any]] = []

    def draw(title: str, columns: dict[str, Any]) -> Figure:
        drawn.append(columns)
        return Figure()

    monkeypatch.setattr("src.callbacks.drawing.draw_similarities", draw)
    whole(tmp_path, pictures(), epochs=epochs)
    (columns,) = drawn
    assert list(columns) == names, "from left to right"
    assert [columns[name]["classes"]["scores"]["AUC"] for name in names] == [10.0, 11.0][: len(names)]


def test_the_list_survives_and_a_picture_drawn_again_is_in_it_once(tmp_path: Path) -> None:
    first, second = pictures(), pictures()
    whole(tmp_path, first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    whole(tmp_path, second)
    assert len(second.pictures) == len(first.pictures)
    assert sorted(first.pictures, key=str) == sorted(second.pictures, key=str)
    assert second.untrained == first.untrained


@pytest.mark.parametrize(("first", "trying"), [(False, False), (True, True), (False, True)])
def test_only_the_first_process_draws_and_not_what_is_only_tried(tmp_path: Path, first: bool, trying: bool) -> None:
    other: Any = SimpleNamespace(is_global_zero=first, sanity_checking=trying, default_root_dir=tmp_path)
    pictures().on_validation_end(other, Linear())
    assert not list(tmp_path.iterdir())


def test_where_no_picture_can_be_written_the_run_ends(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("")
    with pytest.raises(OSError, match="figures"):
        whole(tmp_path, pictures())


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str] = {}
    monkeypatch.setattr("src.callbacks.pictures.find_spec", found.get)
    with pytest.raises(ImportError, match=r"projection=umap needs umap-learn: pip install '\.\[map\]'"):
        pictures(projection="umap")
    found["umap"] = "umap-learn"
    assert pictures(projection="umap").projection == "umap"


# Who is shown them


def test_tensorboard_and_wandb_have_them_and_csv_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("WANDB_SILENT", "true")
    board, csv = TensorBoardLogger(tmp_path, name="", version="board"), CSVLogger(tmp_path, name="", version="csv")
    wandb = WandbLogger(save_dir=str(tmp_path), project="test", offline=True)
    sent: list[tuple[str, int, list[str]]] = []
    log_image = WandbLogger.log_image

    def send(logger: WandbLogger, key: str, images: list[Any], step: int, caption: list[str]) -> None:
        sent.append((key, step, caption))
        log_image(logger, key, images, step=step, caption=caption)

    monkeypatch.setattr(WandbLogger, "log_image", send)
    callback = pictures()
    run = trainer(tmp_path, callback, logger=[board, csv, wandb], max_epochs=1, log_every_n_steps=1)
    run.validate(Linear(), datamodule(tmp_path, True), verbose=False)
    run.fit(run.lightning_module, datamodule(tmp_path, True))
    kept = Path(wandb.experiment.dir) / "media" / "images" / "pictures"
    wandb.experiment.finish()
    steps = [run.global_step if picture["epoch"] else 0 for picture in callback.pictures]
    assert sent == [
        (f"pictures/{picture['kind']}", step, [picture["title"]])
        for picture, step in zip(callback.pictures, steps, strict=True)
    ]
    names = {"gallery", "failures", "map", "similarity"}
    events = reader.EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
    events.Reload()
    assert {*events.Tags()["images"]} == {f"pictures/{name}" for name in names}
    assert [event.step for event in events.Images("pictures/map")] == [0, run.global_step]
    assert {path.name.split("_")[0] for path in kept.iterdir()} == names
    assert "pictures" not in (tmp_path / "csv" / "metrics.csv").read_text()


# What does not change


def test_weights_are_the_same_without_pictures(cache: Path, tmp_path: Path) -> None:
    found: list[tuple[dict[str, Tensor], Tensor, list[int]]] = []
    for change in ("callbacks.pictures=null", "callbacks.pictures.images=20"):
        few = ["dataset.limit=32", "dataset.batch_size=16", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
        plain = ["trainer.precision=32-true", "trainer.sync_batchnorm=false", "trainer.enable_progress_bar=false"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", [f"cache_dir={cache}", "protocol.metrics.knn.k=5", *few, *plain, change])
        folder = tmp_path / str(len(found))
        folder.mkdir()
        pl.seed_everything(0, verbose=False)
        np.random.seed(0)
        data, module, evaluation = assemble(config, 1)
        run = make_trainer(config, folder, module, evaluation, History(), None, None)
        run.validate(module, data, verbose=False)
        run.fit(module, data)
        found.append((module.state_dict(), torch.get_rng_state(), np.random.get_state()[1].tolist()))  # type: ignore[index]
        assert (folder / "figures").exists() == ("null" not in change)
    (weights, drawn, numbers), (other_weights, other_drawn, other_numbers) = found
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert torch.equal(drawn, other_drawn)
    assert numbers == other_numbers
