"""A run's network as people use it: by the run's own preprocessing, to what its evaluation saw."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.assemble import assemble
from src.embedder import Embedder, load
from src.running import checkpoints, runs
from tests.conftest import ROOT, write_digits


@pytest.fixture(scope="module")
def embed(trained: Path) -> Embedder:
    return load(trained, accelerator="cpu", precision="32-true")


@pytest.fixture(scope="module")
def digits(trained: Path, cache: Path) -> np.ndarray:
    images: np.ndarray = np.load(cache / "digits" / "test_images.npy")
    return images


@pytest.mark.parametrize(
    ("space", "precision", "mirror", "whitening"),
    [
        ("embedding", "bf16-mixed", False, None),
        ("pooled", "32-true", False, None),
        ("embedding", "bf16-mixed", True, 20),
    ],
)
def test_it_has_the_vectors_of_the_evaluation_bit_for_bit(
    trained: Path,
    cache: Path,
    digits: np.ndarray,
    tmp_path: Path,
    space: Any,
    precision: Any,
    mirror: bool,
    whitening: int | None,
) -> None:
    config = runs.load_config(trained)
    config.mirror, config.whitening = mirror, whitening
    run = tmp_path / "run"
    run.mkdir()
    runs.begin(run, config)
    config.dataset.cache_dir = str(cache)
    datamodule, module, evaluation = assemble(config, ranks=1)
    checkpoint = checkpoints.load(checkpoints.path_of(trained, "last"))
    checkpoint["state_dict"] = module.state_dict() | checkpoint["state_dict"]
    checkpoints.fill(module, checkpoint)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        precision=precision, callbacks=[evaluation], enable_model_summary=False, enable_checkpointing=False, **options
    )
    trainer.validate(module, datamodule, verbose=False)
    checkpoints.save(checkpoint | {"state_dict": module.state_dict()}, checkpoints.path_of(run, "last"))
    embed = load(run, space=space, accelerator="cpu", precision=precision)
    vectors = embed(digits)
    assert np.array_equal(vectors, evaluation.sets["query"][space].float().numpy())
    assert np.allclose(vectors, embed([*digits[:, :, ::-1]]), atol=1e-2) == mirror, "left and right are the same"


def test_a_network_that_saw_less_than_is_stored_sees_the_middle(
    trained: Path, cache: Path, digits: np.ndarray, tmp_path: Path
) -> None:
    """As its evaluation did: what is given is brought to the size of the stored images."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(checkpoints.path_of(trained, "last"), tmp_path / "checkpoints")
    config = (trained / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"\b((image_)?size): 32$", r"\1: 20", config, flags=re.MULTILINE))
    small, whole = load(tmp_path, accelerator="cpu"), load(trained, accelerator="cpu")
    assert (small.side, small.encoder.size) == (32, 20)
    assert np.allclose(small(digits[:5]), small.encode(digits[:5]))
    middle = np.ascontiguousarray(digits[:5, 6:26, 6:26])
    assert np.array_equal(small.encode(digits[:5]), small.encode(middle))
    assert not np.allclose(small(digits[:5]), whole(digits[:5]), atol=1e-3)


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")))
def test_every_dataset_has_a_size_of_its_stored_images(dataset: str) -> None:
    said = OmegaConf.load(ROOT / "conf" / "dataset" / f"{dataset}.yaml").dataset
    kind: Any = get_class(said._target_)
    assert said.get("size") or kind.side


def test_files_images_and_arrays_are_the_same(embed: Embedder, digits: np.ndarray, cache: Path, tmp_path: Path) -> None:
    pixels = digits[:3]
    paths = write_digits(cache / "digits", tmp_path, 3)
    expected = embed(pixels)
    assert expected.shape == (3, 128)
    assert expected.dtype == np.float32
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    mixed: list[Any] = [str(paths[0]), Image.fromarray(pixels[1]), pixels[2]]
    assert np.array_equal(embed(mixed), expected)
    assert np.array_equal(embed(path for path in paths), expected)
    for alone in (paths[1], str(paths[1]), Image.open(paths[1]), pixels[1]):
        assert np.allclose(embed(alone), expected[1:2], atol=1e-5)
    assert embed([]).shape == (0, 128)


def test_sizes_modes_and_orientation_are_brought_to_what_the_network_takes(embed: Embedder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(embed([large]), embed([small]))
    grey = large[..., 0]
    assert np.array_equal(embed([grey]), embed([np.repeat(grey[..., None], 3, 2)]))
    clear = Image.fromarray(np.dstack([large, np.zeros((60, 90), np.uint8)]))
    assert np.array_equal(embed([clear]), embed([np.full((32, 32, 3), 255, np.uint8)]))
    turned = Image.fromarray(np.rot90(large).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(embed([tmp_path / "turned.png"]), embed([large]))


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), ValueError, r"float32 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"\(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), TypeError, "Tensor"),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), ValueError, "float pixels, whose range can't be known"),
        (Image.fromarray(np.full((8, 8), 200, np.int32)), ValueError, "32-bit pixels, whose range can't be known"),
        ("nowhere.png", OSError, "nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused(embed: Embedder, image: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        embed([image])


def test_on_a_smaller_device_fewer_images_are_seen_at_once(trained: Path, digits: np.ndarray) -> None:
    small, seen = load(trained, accelerator="cpu", precision="32-true"), list[int]()

    def full(_: Any, given: Any) -> None:
        seen.append(len(given[0]))
        if len(given[0]) > 2:
            raise torch.OutOfMemoryError

    expected = small.encode(digits[:5])
    handle = small.encoder.register_forward_pre_hook(full)
    assert np.allclose(small.encode(digits[:5]), expected, atol=1e-6)
    assert seen == [5, 3, 2, 1, 2]
    handle.remove()
    small.encoder.register_forward_pre_hook(lambda _, given: full(_, [[0] * 3]))
    with pytest.raises(torch.OutOfMemoryError):
        small.encode(digits[:5])


def test_bfloat16_is_nearly_the_same(embed: Embedder, trained: Path, digits: np.ndarray) -> None:
    pixels = digits[:20]
    rounded = load(trained, accelerator="cpu", precision="bf16-mixed")
    likeness = (embed(pixels) * rounded(pixels)).sum(1)
    assert not np.array_equal(embed(pixels), rounded(pixels))
    assert likeness.min() > 0.98


def test_the_fingerprint_is_that_of_weights_space_and_mirror(embed: Embedder, trained: Path, tmp_path: Path) -> None:
    assert load(trained, accelerator="cpu").fingerprint == embed.fingerprint
    assert load(trained / "checkpoints" / "last.ckpt").fingerprint == embed.fingerprint
    assert load(trained, space="pooled").fingerprint != embed.fingerprint
    other = changed(trained, tmp_path / "other", lambda state: state["head.linear.weight"].add_(1e-3))
    assert load(other).fingerprint != embed.fingerprint
    config = runs.load_config(trained)
    config.mirror = True
    assert load(with_config(trained, tmp_path / "mirrored", config)).fingerprint != embed.fingerprint


def with_config(trained: Path, folder: Path, config: DictConfig) -> Path:
    """A run of another config with the checkpoints of `trained`."""
    folder.mkdir()
    runs.begin(folder, config)
    (folder / "checkpoints").symlink_to(trained / "checkpoints")
    return folder


def changed(trained: Path, folder: Path, change: Any) -> Path:
    """A copy of a run whose last checkpoint is changed."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(trained / "config.yaml", folder)
    checkpoint = checkpoints.load(checkpoints.path_of(trained, "last"))
    change(checkpoint["state_dict"])
    checkpoints.save(checkpoint, checkpoints.path_of(folder, "last"))
    return folder


def test_mistakes_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        load(tmp_path)
    wild = changed(trained, tmp_path / "wild", lambda state: state["head.linear.bias"].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match="not finite"):
        load(wild)(np.zeros((32, 32, 3), np.uint8))
    other = changed(trained, tmp_path / "other", lambda state: state.pop("head.linear.bias"))
    with pytest.raises(ValueError, match=r"other are of another network.*linear\.bias"):
        load(other)
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt"):
        load(wild, "best")
