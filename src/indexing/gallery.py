"""A page of rows of images, which needs nothing beside itself."""

import base64
import io
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from src.datamodules.images import printable
from src.running.runs import write_atomically

SIDE = 224  # pixels of an image on the page, at most
ROWS, IMAGES = 200, 3000  # on a page, which must stay light enough to open


class Picture(NamedTuple):
    """An image of the page: how to open it, what is said of it, and its name."""

    open: Callable[[], Image.Image]
    said: str
    name: str


def write(path: Path, title: str, remarks: Sequence[str], rows: Iterable[tuple[str, Sequence[Picture]]]) -> int:
    """Write the page, whole or not at all; images that can't be opened are said to be missing.

    Returns:
        How many rows it has: as many as it may have, `ROWS` with `IMAGES` in all.

    Raises:
        OSError: it can't be written.
    """
    taken: list[dict[str, object]] = []
    room = IMAGES
    for name, pictures in rows:
        if len(taken) == ROWS or not room:
            break
        rest, pictures = len(pictures) - room, pictures[:room]
        room -= len(pictures)
        shown = [
            {"source": _thumbnail(picture), "said": picture.said, "name": printable(picture.name)}
            for picture in pictures
        ]
        title_of_row = f"{printable(name)}: {rest:,} more are not shown" if rest > 0 else printable(name)
        taken.append({"title": title_of_row, "pictures": shown})
    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("gallery.html").render(
        nonce=secrets.token_hex(12),
        title=title,
        remarks=remarks,
        rows=taken,
        style=Markup((here / "gallery.css").read_text()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return len(taken)


def _thumbnail(picture: Picture) -> str:
    try:
        image = picture.open()
    except (OSError, ValueError, KeyError, IndexError):  # moved, or a store that is another by now
        return ""
    return f"data:image/webp;base64,{base64.b64encode(thumbnail(image, SIDE)).decode()}"


def thumbnail(image: Image.Image, side: int) -> bytes:
    """An RGB image as WebP, no side longer than `side`, the aspect ratio kept."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=82, method=4)
    return content.getvalue()
