"""The pictures that runs drew, for the page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from src.reporting.results import Protocol
from src.running.runs import write_atomically

SIDE, HIGHEST, WEIGHT = 1400, 16000, 12 * 2**20  # pixels (a WebP has 16,383 at most), and bytes of all in the page
PIXELS = 40_000_000  # a larger picture is not opened


def gather(protocols: Sequence[Protocol], folder: Path) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """The pictures of the first run of each setting that has some, as far as there is room; and those left out, why.

    Those taken are also written into `folder`.
    """
    taken: list[dict[str, str]] = []
    left: list[tuple[str, str]] = []
    room = WEIGHT
    chosen = [
        (f"{setting}, seed {run['seed']}", run, picture)
        for protocol in protocols
        for setting, members in protocol.settings.items()
        for run in [run for run in members if run.get("pictures")][:1]
        for picture in run["pictures"]
    ]
    for number, (who, run, picture) in enumerate(chosen, 1):
        path = Path(run["folder"]) / picture["png"]
        try:
            image = _open(path, Path(run["folder"]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            left.append((str(path), f"a picture that can't be shown: {error}"))
            continue
        source = embed(image)
        if len(source) > room:
            left.append((str(path), f"no room among the page's pictures: {WEIGHT >> 20} MiB of them are in it"))
            continue
        room -= len(source)
        content = io.BytesIO()
        image.save(content, "PNG")
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{number:03}.png", content.getvalue())
        title = f"{picture['title']}, epoch {picture['epoch']}"
        taken.append({"who": who, "title": title, "kind": picture["kind"], "source": source})
    return taken, left


def _open(path: Path, folder: Path) -> Image.Image:
    """The picture at `path`, which a stranger may have named, so it must lie in `folder`."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it does not lie in the run's folder")
    image = Image.open(path, formats=["PNG"])
    if image.width * image.height > PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    image.load()
    return image


def embed(image: Image.Image) -> str:
    """A data URI, no wider than SIDE; figures of many panels are high."""
    small = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((SIDE, HIGHEST), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
