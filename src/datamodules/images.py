"""From image files to right uint8 RGB, many at once and a few in memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from src.datamodules.store import write_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHUNK = 512  # images decoded at once


def check_resample(resample: str) -> None:
    """Raise a ValueError where Pillow has no such filter."""
    if resample not in FILTERS:
        raise ValueError(f"dataset.resample={resample!r}: choose one of {', '.join(FILTERS)}")


def read_rgb(path: Path, size: int, resample: str) -> np.ndarray:
    """Decode one image to uint8 `(size, size, 3)`, the aspect ratio ignored, antialiased by the filter `resample`.

    Turned as its EXIF orientation says; of an animation the first frame; transparency on white; 16-bit grey scaled to
    8 bits; CMYK and palettes converted.

    Raises:
        OSError: the file is broken or no image; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey, or 32-bit integers that hold it
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB").resize((size, size), FILTERS[resample]))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} can't be decoded: {error}") from error


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted; hidden ones are none."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def decode_split(
    folder: Path, split: str, paths: Sequence[Path], labels: Sequence[int], size: int, resample: str, skip_broken: bool
) -> list[str]:
    """Decode `paths` in parallel into the split of the store being built in `folder`; memory holds `CHUNK` of them.

    Returns:
        What was left out and why, a line each; empty unless `skip_broken`.

    Raises:
        OSError: a file is broken and `skip_broken` is not set, or the disk is full.
    """
    left_out: list[str] = []

    def decode(path: Path) -> np.ndarray | OSError:
        try:
            return read_rgb(path, size, resample)
        except OSError as error:
            return error

    def examples() -> Iterator[tuple[np.ndarray, int]]:
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
            chunks = range(0, len(paths), CHUNK)
            for start in track(chunks, description=f"{split}: {len(paths):,} images", transient=True):
                part = slice(start, start + CHUNK)
                for image, label in zip(pool.map(decode, paths[part]), labels[part], strict=True):
                    if not isinstance(image, OSError):
                        yield image, label
                    elif skip_broken:
                        left_out.append(str(image))
                    else:
                        raise OSError(f"{image}; dataset.skip_broken=true leaves such files out") from image

    write_split(folder, split, examples())
    return left_out
