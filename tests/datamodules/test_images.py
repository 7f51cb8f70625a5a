"""Every kind of file becomes right RGB: written by Pillow, read back, compared with what was drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.datamodules.images import check_resample, decode_split, find_images, read_rgb

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(size: int = 64) -> np.ndarray:
    """Red, green, blue and white, a quarter each."""
    image = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    image[:half, :half], image[:half, half:], image[half:, :half], image[half:, half:] = RED, GREEN, BLUE, WHITE
    return image


def centres(image: np.ndarray) -> np.ndarray:
    quarter = len(image) // 4
    return image[quarter :: 2 * quarter, quarter :: 2 * quarter][:2, :2].reshape(4, 3).astype(int)


EXPECTED = np.array([RED, GREEN, BLUE, WHITE])


MODES = {
    "png": ("RGB", "RGBA", "P"),
    "jpg": ("RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "P"),
    "gif": ("RGB", "P"),
    "tiff": ("RGB", "RGBA", "P", "CMYK"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_colours_survive(tmp_path: Path, suffix: str, mode: str) -> None:
    options = {"quality": 95} if suffix in ("jpg", "webp") else {}
    Image.fromarray(quarters()).convert(mode).save(tmp_path / f"a.{suffix}", **options)  # type: ignore[arg-type]
    image = read_rgb(tmp_path / f"a.{suffix}", 32, "bilinear")
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert np.abs(centres(image) - EXPECTED).max() <= 6


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([quarters(), np.full((64, 64), 255, np.uint8)])
    rgba[:32, :32, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = read_rgb(tmp_path / "a.png", 64, "bilinear")
    assert centres(image).tolist() == [list(c) for c in (WHITE, GREEN, BLUE, WHITE)]
    palette = Image.fromarray(quarters()).quantize(8)
    palette.save(tmp_path / "b.png", transparency=palette.getpixel((0, 0)))
    assert centres(read_rgb(tmp_path / "b.png", 64, "bilinear"))[0].tolist() == list(WHITE)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 257)])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_8_and_16_bits(tmp_path: Path, dtype: type, scale: int, suffix: str) -> None:
    levels = np.arange(256).reshape(16, 16)
    Image.fromarray((levels * scale).astype(dtype)).save(tmp_path / f"a.{suffix}")
    image = read_rgb(tmp_path / f"a.{suffix}", 16, "bilinear")
    assert np.array_equal(image, np.repeat(levels[..., None], 3, 2))


TURNED = {  # how an upright image is stored under each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(quarters()).transpose(TURNED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert centres(read_rgb(tmp_path / "a.png", 64, "bilinear")).tolist() == EXPECTED.tolist()


def test_the_aspect_ratio_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(quarters()).resize((300, 40)).save(tmp_path / "a.png")
    assert np.abs(centres(read_rgb(tmp_path / "a.png", 64, "bilinear")) - EXPECTED).max() <= 6


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_broken_files_are_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "broken.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:500] if isinstance(content, str) else content)
    with pytest.raises(OSError, match=r"broken.jpg can't be decoded"):
        read_rgb(path, 32, "bilinear")


def test_a_broken_file_stops_or_is_left_out(tmp_path: Path) -> None:
    for number in range(1200):
        Image.fromarray(np.full((4, 4, 3), number % 256, np.uint8)).save(tmp_path / f"{number:04}.png")
    (tmp_path / "0700.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    paths = find_images(tmp_path)
    assert len(paths) == 1200
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(OSError, match=r"0700.png can't be decoded.*dataset.skip_broken=true"):
        decode_split(store, "train", paths, range(1200), 4, "bilinear", skip_broken=False)
    (line,) = decode_split(store, "train", paths, range(1200), 4, "bilinear", skip_broken=True)
    assert "0700.png" in line
    images, labels = np.load(store / "train_images.npy"), np.load(store / "train_labels.npy")
    assert sorted(path.name for path in store.iterdir()) == ["train_images.npy", "train_labels.npy"]
    assert labels.tolist() == [number for number in range(1200) if number != 700]
    assert np.array_equal(images[:, 0, 0, 0], labels % 256)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_the_filter_is_pillows(tmp_path: Path, resample: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    expected = np.asarray(noise.resize((32, 32), Image.Resampling[resample.upper()]))
    assert np.array_equal(read_rgb(tmp_path / "a.png", 32, resample), expected)


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(ValueError, match=r"dataset.resample='nearest': choose one of bilinear, bicubic, lanczos"):
        check_resample("nearest")
