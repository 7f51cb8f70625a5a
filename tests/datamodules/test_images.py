"""Every kind of file becomes right RGB: written by Pillow, read back, compared with what was drawn."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.datamodules.images import UnreadableError, decode_split, find_images, open_rgb, read_rgb
from tests.conftest import ROOT

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


LEVELS = [0, 85, 170, 255]  # exact at every depth


def tiff(bits: int, kind: int, values: bytes, white_is_zero: bool) -> bytes:
    """A grey TIFF of 4 x 1 pixels as the format's definition says, since Pillow writes few of them."""
    ours = {256: 4, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 134, 277: 1, 278: 1, 339: kind}
    tags = sorted((ours | {279: len(values)}).items())
    assert 8 + 2 + 12 * len(tags) + 4 == 134
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + values


DEPTHS = {
    4: bytes([0x05, 0xAF]),
    8: bytes(LEVELS),
    12: bytes([0x00, 0x05, 0x55, 0xAA, 0xAF, 0xFF]),
    16: struct.pack("<4H", *(257 * level for level in LEVELS)),
}


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", DEPTHS)
def test_grey_of_every_depth(tmp_path: Path, bits: int, white_is_zero: bool) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(bits, 1, DEPTHS[bits], white_is_zero))
    if (bits, white_is_zero) == (12, True):
        with pytest.raises(OSError, match=r"a.tif can't be decoded"):  # Pillow has no such mode
            read_rgb(tmp_path / "a.tif", 4, "bilinear")
        return
    image = read_rgb(tmp_path / "a.tif", 4, "bilinear")
    assert image[0, :, 0].tolist() == (LEVELS[::-1] if white_is_zero else LEVELS)


@pytest.mark.parametrize(
    ("bits", "kind", "code", "what"),
    [
        (32, 1, "I", "32-bit integer"),
        (32, 2, "i", "32-bit signed integer"),
        (16, 2, "h", "16-bit signed integer"),
        (8, 2, "b", "8-bit signed integer"),
        (32, 3, "f", "32-bit float"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused(tmp_path: Path, bits: int, kind: int, code: str, what: str) -> None:
    values = [0.0, 0.3, 0.6, 1.0] if code == "f" else [0, 40, 80, 120]
    (tmp_path / "a.tif").write_bytes(tiff(bits, kind, struct.pack(f"<4{code}", *values), white_is_zero=False))
    with pytest.raises(OSError, match=rf"a.tif can't be decoded: it has {what} pixels.*: convert it to 8 or 16 bits"):
        read_rgb(tmp_path / "a.tif", 4, "bilinear")


def png(depth: int, colour: int, row: bytes, transparent: tuple[int, ...]) -> bytes:
    """A PNG of 4 x 1 pixels, `transparent` the sample values of what is."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0),
        b"tRNS": struct.pack(f">{len(transparent)}H", *transparent),
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("depth", "row"), [(2, bytes([0x1B])), (4, bytes([0x05, 0xAF])), (8, bytes(LEVELS))])
def test_a_transparent_level_lies_on_white(tmp_path: Path, depth: int, row: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png(depth, 0, row, ((2**depth - 1) // 3,)))
    assert read_rgb(tmp_path / "a.png", 4, "bilinear")[0, :, 0].tolist() == [0, 255, 170, 255]


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3)])
def test_a_transparent_level_of_16_bits_is_refused(tmp_path: Path, colour: int, samples: int) -> None:
    (tmp_path / "a.png").write_bytes(png(16, colour, bytes(4 * 2 * samples), (0,) * samples))
    with pytest.raises(OSError, match=r"a.png can't be decoded: it has 16 bits and a transparent colour"):
        read_rgb(tmp_path / "a.png", 4, "bilinear")


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(quarters()).save(tmp_path / "a.png", format="JPEG", quality=95)
    assert np.abs(centres(read_rgb(tmp_path / "a.png", 32, "bilinear")) - EXPECTED).max() <= 6
    Image.fromarray(quarters()).save(tmp_path / "b.png", format="PPM")  # no format that is promised
    with pytest.raises(OSError, match=r"b.png can't be decoded"):
        read_rgb(tmp_path / "b.png", 32, "bilinear")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes] + [("tiff", "I;16")]
)
def test_whatever_the_bytes_the_file_is_named(tmp_path: Path, suffix: str, mode: str) -> None:
    """Truncated and altered files decode or raise an OSError of one line; what is cut off never goes unnoticed."""
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).convert(mode)
    picture.save(path, **({} if suffix in ("bmp", "gif") else {"exif": exif}))  # type: ignore[arg-type]
    whole, right = path.read_bytes(), read_rgb(path, 8, "bilinear")
    refused = []
    for turn in range(60):
        content = bytearray(whole)
        if turn % 2:
            content = content[: rng.integers(len(content))]
        else:
            for place in rng.integers(0, len(content) if turn % 4 else min(120, len(content)), 3):
                content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            image = read_rgb(path, 8, "bilinear")
        except OSError as error:
            refused.append(str(error))
        else:
            assert image.shape == (8, 8, 3)
            assert turn % 2 == 0 or np.array_equal(image, right)
    assert len(refused) > 20
    assert all(line.startswith(f"{path} can't be decoded: ") and len(line.splitlines()) == 1 for line in refused)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), struct.error("short"), KeyError(7)])
def test_whatever_a_decoder_raises_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(quarters()).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=r"a.png can't be decoded: (MemoryError|too deep|short|7)$"):
        read_rgb(tmp_path / "a.png", 4, "bilinear")


def test_a_file_that_cannot_be_read_now_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another time, and nobody would know that it is missing."""
    Image.fromarray(quarters()).save(tmp_path / "a.png")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fail)
        with pytest.raises(UnreadableError, match=r"a.png can't be read: Input/output error"):
            decode_split(tmp_path, "train", [tmp_path / "a.png"], [0], 4, "bilinear", skip_broken=True)
    paths = [tmp_path / "a.png", tmp_path / "gone.png"]
    (line,) = decode_split(tmp_path, "train", paths, [0, 1], 4, "bilinear", skip_broken=True)
    assert "gone.png can't be decoded: [Errno 2]" in line


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_damaged_notes_do_not_spoil_the_pixels(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(quarters())
    image.save(tmp_path / f"a.{suffix}", exif=b"Exif\x00\x00no TIFF header", lossless=True, dpi=(72, 72))
    assert np.abs(centres(read_rgb(tmp_path / f"a.{suffix}", 32, "bilinear")) - EXPECTED).max() <= 6


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(b"x")
    with pytest.raises(OSError, match="caf") as caught:
        read_rgb(path, 4, "bilinear")
    assert r"caf\xe9.png" in str(caught.value).encode().decode()


def test_large_images_are_read_in_silence_and_larger_ones_named(tmp_path: Path) -> None:
    for name, side in (("large", 12), ("bomb", 15)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
    script = (
        "import sys; from pathlib import Path; from PIL import Image; from src.datamodules.images import read_rgb\n"
        "Image.MAX_IMAGE_PIXELS = 100\n"
        "read_rgb(Path(sys.argv[1]) / 'large.png', 4, 'bilinear')\n"
        "try: read_rgb(Path(sys.argv[1]) / 'bomb.png', 4, 'bilinear')\n"
        "except OSError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr == ""
    assert "bomb.png can't be decoded: Image size (225 pixels) exceeds limit of 200" in result.stdout


def test_pixels_are_counted_before_any_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.new("L", (40, 30)).save(path)
    assert open_rgb(path, "it", 1200).size == (40, 30)
    path.write_bytes(path.read_bytes()[:45])  # the size is there, and no pixel
    with pytest.raises(OSError, match="it can't be decoded: it has 40x30 pixels, more than 1,199"):
        open_rgb(path, "it", 1199)


def test_images_are_found_in_order_and_through_links(tmp_path: Path) -> None:
    root, names = tmp_path / "root", ["a-b/1.png", "a/2.PNG", "a/b/3.jpg", "a.b.tiff", "z.webp/4.gif"]
    for name in [*names, "a/.hidden/5.png", "a/b/__MACOSX/6.png", ".7.png", "a/notes.txt"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "8.png").touch()
    for name in ("link", "second"):
        (root / name).symlink_to(tmp_path / "other")
    linked = ["link/deep/8.png", "second/deep/8.png"]
    assert find_images(root) == sorted(root / name for name in names + linked)


@pytest.mark.parametrize(
    "links",
    [{"root/link": "root"}, {"root/link": "."}, {"root/a/link": "root"}, {"root/link": "other", "other/link": "root"}],
)
def test_a_link_round_in_a_circle_is_named(tmp_path: Path, links: dict[str, str]) -> None:
    for name in ("root/a", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name, target in links.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    with pytest.raises(OSError, match=r"link is a link to .*, in which it lies itself: remove it"):
        find_images(tmp_path / "root")
