"""A page of images that needs nothing beside itself."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from src.indexing import gallery
from src.indexing.gallery import Picture, write


def missing() -> Image.Image:
    raise OSError("gone")


def test_it_has_the_images_and_their_names(tmp_path: Path) -> None:
    wide = Picture(lambda: Image.new("RGB", (600, 300), (200, 30, 30)), "0.99", "<b>&.png")
    page = tmp_path / "folder" / "page.html"
    assert write(page, "A <title>", ["said"], [("first", [wide, Picture(missing, "0.5", "gone.png")])]) == 1
    text = page.read_text()
    assert "<title>A &lt;title&gt;</title>" in text
    assert "&lt;b&gt;&amp;.png" in text
    assert "<b>" not in text
    assert text.count("not there") == 1
    (source,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    image = Image.open(io.BytesIO(base64.b64decode(source)))
    assert image.size == (224, 112)
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_it_stays_light_enough_to_open(tmp_path: Path, monkeypatch: object) -> None:
    rows = ((str(number), [Picture(missing, "", "")] * 40) for number in range(1000))
    assert write(tmp_path / "page.html", "many", [], rows) == gallery.IMAGES // 40
    crowd = ("crowd", [Picture(missing, "", "")] * (gallery.IMAGES + 7))
    assert write(tmp_path / "page.html", "many", [], [crowd, ("next", [])]) == 1
    assert "crowd: 7 more are not shown" in (tmp_path / "page.html").read_text()
