"""Whatever is sent as an image ends in an answer or in one line that says why not; the server goes on."""

import json
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from src.indexing.index import Index
from tests.serving.conftest import Client, encoded
from tests.serving.test_limits import png

PICTURE = Image.effect_noise((96, 64), 60).convert("RGB")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SOUND = {format: encoded(PICTURE, format) for format in FORMATS}
LINE = zlib.compress(bytes(9))


def with_text(kind: bytes, content: bytes, times: int) -> bytes:
    """A PNG with chunks of text before its pixels."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    head, tail = SOUND["PNG"][:33], SOUND["PNG"][33:]
    return head + chunk * times + tail


def frames(count: int) -> bytes:
    """A GIF that repeats its one frame."""
    content = encoded(Image.new("P", (8, 8)), "GIF")
    start = content.index(b"\x2c", 13)  # of the frame, behind header and palette
    return content[:start] + content[start:-1] * count + content[-1:]


BROKEN = {
    "one byte": b"\0",
    "text": b"an image",
    "a megabyte of zeros": bytes(2**20),
    "another kind: SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "another kind: HTML": b"<!doctype html><script>alert(1)</script>",
    "another kind: PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "another kind: ZIP": b"PK\x03\x04" + bytes(99),
    "another kind: EPS, which would start a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "another kind: ICO": encoded(PICTURE, "ICO"),
    "a name in JSON": json.dumps({"path": "/etc/passwd"}).encode(),
    "a form": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nx\r\n--x--\r\n',
    "a PNG of 4 gigapixels": png(65535, 65535, LINE),
    "a PNG without pixels": png(100, 100),
    "a PNG of no size": png(0, 0, LINE),
    "a PNG whose text is a bomb": with_text(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)), 1),
    "a PNG with bombs of text that are each allowed": with_text(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)), 99),
    "a PNG whose profile is a bomb": with_text(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)), 1),
    "a JPEG of two bytes": b"\xff\xd8",
    "a TIFF that leads to itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a TIFF of floats": encoded(Image.new("F", (9, 9)), "TIFF"),
    "a BMP of 4 gigapixels": b"BM"
    + bytes(8)
    + struct.pack("<IIiiHHIIIIII", 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_sound_image_is_refused_in_one_line(ask: Client, name: str) -> None:
    refused(ask, BROKEN[name])


@pytest.mark.parametrize("format", FORMATS)
def test_a_half_image_is_refused(ask: Client, format: str) -> None:
    assert ask("POST", "/search", SOUND[format]).status == 200
    for share in (0.02, 0.3, 0.6):
        refused(ask, SOUND[format][: int(share * len(SOUND[format]))])


def test_much_that_is_not_the_picture_costs_nothing(ask: Client) -> None:
    assert ask("POST", "/search", frames(5000)).status == 200  # only the first is looked at
    assert ask("POST", "/search", with_text(b"tEXt", b"a\0" + bytes(2**16), 100)).status == 200


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_bytes_end_well(ask: Client, index: Index) -> None:
    numbers = random.Random(0)
    seen = set()
    for _ in range(300):
        content = bytearray(numbers.choice([*SOUND.values()]))
        for _ in range(numbers.choice((1, 3, 30))):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        if numbers.random() < 0.3:
            del content[numbers.randrange(len(content)) :]
        reply = ask("POST", "/search", bytes(content))
        seen.add(reply.status)
        assert reply.status in (200, 400)
        if reply.status == 400:
            assert json.loads(reply.content)["detail"].isprintable()
    assert seen == {200, 400}
    assert ask("POST", "/search", Path(index.path(0)).read_bytes()).status == 200


def refused(ask: Client, content: bytes) -> None:
    reply = ask("POST", "/search", content)
    detail = json.loads(reply.content)["detail"]
    assert reply.status == 400, detail
    assert detail.startswith("the image can't be decoded: ")
    assert detail.isprintable()
    assert len(detail) <= 300
    assert " object at 0x" not in detail
