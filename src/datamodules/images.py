"""From image files to right uint8 RGB, many at once and a few in memory."""

import errno
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile
from rich.progress import track

from src.datamodules.store import write_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whichever the suffix says; no other decoder is tried
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN")
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHUNK = 512  # images decoded at once
ABSENT = (errno.ENOENT, errno.ELOOP)  # of a link that leads nowhere
DECODER = 2  # raised when a file decodes to other pixels than before, so that folders are decoded again

# A line for every large image or odd tag helps nobody: what matters is an error.
warnings.filterwarnings("ignore", module="PIL")


class UnreadableError(OSError):
    """The bytes can't be had now, which says nothing of them: it may be another time."""


def read_rgb(path: Path, size: int, resample: str) -> np.ndarray:
    """Decode one image to uint8 `(size, size, 3)`, the aspect ratio ignored, antialiased by the filter `resample`.

    Raises:
        OSError: as of `open_rgb`.
    """
    return to_square(open_rgb(path, printable(path)), size, resample)


def open_rgb(source: Path | BinaryIO, name: str, most: int | None = None) -> Image.Image:
    """An image file, opened or not, as uint8 RGB.

    Turned as its EXIF orientation says; of an animation the first frame; transparency on white; grey of 12 or 16 bits
    scaled to 8; CMYK, LAB and palettes converted.

    Args:
        most: pixels that it may have, which is looked at before any is decoded; None: as many as Pillow dares.

    Raises:
        UnreadableError: the file is there and can't be read.
        OSError: it is absent, broken, no image of these formats, or its pixels have no known range; the message has its
            `name`.
    """
    try:
        with Image.open(source, formats=FORMATS) as file:
            if most is not None and file.width * file.height > most:
                raise ValueError(f"it has {file.width}x{file.height} pixels, more than {most:,}")
            return to_rgb(file)
    except UnidentifiedImageError as error:
        raise OSError(f"{name} can't be decoded: it is no image of the kinds {', '.join(FORMATS)}") from error
    except Exception as error:  # from a stranger's bytes Pillow's decoders may raise anything
        if getattr(error, "errno", None) not in (None, *ABSENT):
            raise UnreadableError(f"{name} can't be read: {os.strerror(error.errno)}") from error  # type: ignore[attr-defined]
        raise OSError(f"{name} can't be decoded: {str(error) or type(error).__name__}") from error


def to_square(image: Image.Image, size: int, resample: str) -> np.ndarray:
    """RGB resized to uint8 `(size, size, 3)`."""
    return np.asarray(image.resize((size, size), FILTERS[resample]))


def printable(path: Path | str) -> str:
    """A file's name, also where it is no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def to_rgb(file: Image.Image) -> Image.Image:
    """What an opened file shows, upright and opaque; a ValueError where Pillow can't know or would get it wrong."""
    bits, white_is_zero = 16, False
    if isinstance(file, TiffImageFile):
        bits, kind = file.tag_v2.get(BITSPERSAMPLE, (1,))[0], file.tag_v2.get(SAMPLEFORMAT, (1,))[0]
        if kind != 1 or bits > 16:
            name = {2: "signed integer", 3: "float"}.get(kind, "integer")
            raise ValueError(f"it has {bits}-bit {name} pixels, whose range can't be known: convert it to 8 or 16 bits")
        white_is_zero = file.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    elif isinstance(file, PngImageFile) and "transparency" in file.info:
        depth = file.tile[0].args  # Pillow brings the pixels of these to 8 bits, but not the level that is transparent
        if depth in ("I;16B", "RGB;16B"):
            raise ValueError("it has 16 bits and a transparent colour: convert it to 8 bits or to an alpha channel")
        if depth in ("L;2", "L;4"):
            file.info["transparency"] *= 85 if depth == "L;2" else 17
    elif file.mode == "F" or (file.mode == "I" and not isinstance(file, ImageFile.ImageFile)):  # Pillow's, of no file
        kind = "float" if file.mode == "F" else "32-bit"
        raise ValueError(f"it has {kind} pixels, whose range can't be known: convert it to 8 or 16 bits")
    file.load()  # what is broken in the pixels is an error, what is in the notes beside them is not
    try:
        image = ImageOps.exif_transpose(file)
    except Exception:
        image = file.copy()
    if image.mode.startswith("I"):  # grey of more than 8 bits
        levels = np.asarray(image).astype(np.int64) * 255 // (2**bits - 1)
        image = Image.fromarray((255 - levels if white_is_zero else levels).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_hidden(name: str) -> bool:
    """Whether a program or a system made the file or folder of this name for itself, as `.ipynb_checkpoints`."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted; see `walk_images`."""
    return list(walk_images(folder))


def walk_images(folder: Path) -> Iterator[Path]:
    """The image files below `folder` in their order; links are followed, and what is hidden or below it is none.

    A link to a missing file is among them where its name is an image's: decoding names it as broken. Memory holds the
    names of the folders on the way to the file, not those of all.

    Raises:
        OSError: a folder can't be read, or a link leads nowhere or round in a circle; the message names it.
    """
    # What is left of each folder on the way, and which those above it really are.
    way: list[tuple[Iterator[os.DirEntry[str]], tuple[Path, ...]]]
    way = [(_entries(folder), (Path(os.path.realpath(folder)),))]
    while way:
        entries, above = way[-1]
        entry = next(entries, None)
        if entry is None:
            way.pop()
            continue
        path = Path(entry.path)
        if entry.is_dir():
            real = Path(os.path.realpath(path))
            if any(parent.is_relative_to(real) for parent in above):
                raise OSError(f"{path} is a link to {real}, in which it lies itself: remove it")
            way.append((_entries(path), (*above, real)))
            continue
        dangling = entry.is_symlink() and not path.exists()
        if path.suffix.lower() in SUFFIXES and (entry.is_file() or dangling):
            yield path
        elif dangling:
            raise OSError(f"{path} is a link to nothing: mend or remove it")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is not hidden in a folder, by name."""
    with os.scandir(folder) as entries:
        return iter(sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name))


def decode_split(
    folder: Path, split: str, paths: Sequence[Path], labels: Sequence[int], size: int, resample: str, skip_broken: bool
) -> list[str]:
    """Decode `paths` in parallel into the split of the store being built in `folder`; memory holds `CHUNK` of them.

    Returns:
        What was left out and why, a line each; empty unless `skip_broken`.

    Raises:
        OSError: a file is broken and `skip_broken` is not set, or can't be read now; or the disk is full.
    """
    left_out: list[str] = []

    def try_to_read(path: Path) -> np.ndarray | OSError:
        try:
            return read_rgb(path, size, resample)
        except OSError as error:
            return error

    def examples() -> Iterator[tuple[np.ndarray, int]]:
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
            chunks = range(0, len(paths), CHUNK)
            for start in track(chunks, description=f"{split}: {len(paths):,} images", transient=True):
                part = slice(start, start + CHUNK)
                for image, label in zip(pool.map(try_to_read, paths[part]), labels[part], strict=True):
                    if not isinstance(image, OSError):
                        yield image, label
                    elif isinstance(image, UnreadableError):
                        raise image
                    elif skip_broken:
                        left_out.append(str(image))
                    else:
                        raise OSError(f"{image}; dataset.skip_broken=true leaves such files out") from image

    write_split(folder, split, examples())
    return left_out
