"""What is answered: the true neighbours, the images of the index and no other file, and what browsers are told."""

import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.embedder import Embedder
from src.indexing.index import Index
from src.serving.searcher import SIDE, Searcher
from tests.serving.conftest import COUNT, Client, encoded, served


def found(index: Index, vector: np.ndarray, k: int, without: int | None = None) -> list[tuple[str, int]]:
    """Names and rows of the `k` nearest, most similar first."""
    similarity = index.vectors @ vector
    rows = [int(row) for row in np.argsort(-similarity, kind="stable") if row != without][:k]
    return [(index.find(row).name, row) for row in rows]


def rows_of(content: bytes) -> list[tuple[str, int]]:
    return [(neighbor["name"], neighbor["row"]) for neighbor in json.loads(content)["neighbors"]]


def test_an_image_finds_its_neighbours(ask: Client, index: Index, embedder: Embedder) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    reply = ask("POST", "/search?k=7", encoded(noise, "PNG"))
    assert reply.status == 200
    assert rows_of(reply.content) == found(index, embedder(noise)[0], 7)
    answer = json.loads(reply.content)
    assert answer["name"] is None
    similarities = [neighbor["similarity"] for neighbor in answer["neighbors"]]
    expected = np.sort(index.vectors @ embedder(noise)[0])[::-1][:7]
    assert np.allclose(similarities, expected, atol=1e-5)


def test_an_image_of_the_index_finds_itself_and_a_row_does_not(ask: Client, index: Index) -> None:
    content = Path(index.path(5)).read_bytes()
    first = json.loads(ask("POST", "/search", content).content)["neighbors"][0]
    assert (first["row"], first["name"], round(first["similarity"], 4)) == (5, index.find(5).name, 1)
    reply = ask("GET", "/neighbors/5?k=9")
    assert rows_of(reply.content) == found(index, index.vectors[5], 9, without=5)
    assert json.loads(reply.content)["name"] == index.find(5).name


def test_there_are_no_more_neighbours_than_images(ask: Client, index: Index) -> None:
    assert len(rows_of(ask("GET", "/neighbors/0?k=100").content)) == COUNT - 1
    assert len(rows_of(ask("POST", "/search?k=100", Path(index.path(0)).read_bytes()).content)) == COUNT
    assert len(rows_of(ask("GET", "/neighbors/0").content)) == 12


def test_images_are_small_and_as_they_are(index: Index, embedder: Embedder) -> None:
    searcher = Searcher(index, embedder)
    wide = Path(index.path(38))
    before = wide.read_bytes()
    try:
        with served(searcher) as ask:
            wide.write_bytes(encoded(Image.new("RGB", (960, 480), (10, 200, 30)), "PNG"))
            reply = ask("GET", "/image/38")
            assert reply.headers["Content-Type"] == "image/webp"
            image = Image.open(BytesIO(reply.content))
            assert (image.format, image.size) == ("WEBP", (SIDE, SIDE // 2))
            assert np.abs(np.asarray(image.convert("RGB")).mean((0, 1)) - (10, 200, 30)).max() < 4
            wide.unlink()
            assert ask("GET", "/image/38").content == reply.content  # it is remembered
            other = Path(index.path(39))
            other.rename(other.with_suffix(".away"))
            assert ask("GET", "/image/39").status == 404
            assert json.loads(ask("GET", "/image/39").content) == {"detail": "the image of row 39 is no longer there"}
            other.with_suffix(".away").rename(other)
            assert ask("GET", "/image/39").status == 200  # that it was missing is not
    finally:
        wide.write_bytes(before)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/neighbors/40", 404, "row 40: the index has 40 images, 0 to 39"),
        ("/image/40", 404, "row 40: the index has 40 images, 0 to 39"),
        (f"/image/{10**30}", 404, "the index has 40 images"),
        ("/neighbors/-1", 422, "row: Input should be greater than or equal to 0"),
        ("/neighbors/x", 422, "row: "),
        (f"/neighbors/{'9' * 5000}", 422, "row: "),
        ("/neighbors/1?k=0", 422, "k: Input should be greater than or equal to 1"),
        ("/neighbors/1?k=101", 422, "k: Input should be less than or equal to 100"),
        ("/neighbors/1?k=", 422, "k: "),
        ("/image/../../etc/passwd", 404, "Not Found"),
        ("/image/%2e%2e%2fetc%2fpasswd", 404, "Not Found"),
        ("/image//etc/passwd", 404, "Not Found"),
        ("/page.js", 404, "Not Found"),
        ("/docs", 404, "Not Found"),
        ("/search", 405, "Method Not Allowed"),
    ],
)
def test_nothing_else_is_there(ask: Client, path: str, status: int, words: str) -> None:
    reply = ask("GET", path)
    assert reply.status == status
    detail = json.loads(reply.content)["detail"]
    assert words in detail
    assert detail.isprintable()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "rebound.example:{port}"}, 403),
        ({"Host": "127.0.0.1:{port}.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # an <img>
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),  # another port's
    ],
)
def test_only_this_machine_and_this_page_may_ask(
    ask: Client, index: Index, headers: dict[str, str], status: int
) -> None:
    named = {name: value.format(port=ask.port) for name, value in headers.items()}
    assert ask("POST", "/search", Path(index.path(0)).read_bytes(), named).status == status
    assert ask("GET", "/", headers=named).status == status


def test_browsers_are_told_to_be_strict(ask: Client) -> None:
    for path in ("/", "/neighbors/1", "/image/1", "/openapi.json", "/nothing", "/neighbors/1?k=0"):
        headers = ask("GET", path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Server" not in headers
    refused = ask("GET", "/", headers={"Host": "evil.example"})
    assert refused.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_the_page_runs_its_own_script_alone(ask: Client) -> None:
    nonces = set()
    for _ in range(2):
        reply = ask("GET", "/")
        page, policy = reply.content.decode(), reply.headers["Content-Security-Policy"]
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
        assert re.findall(r"<(?:script|style)\b[^>]*", page) == re.findall(
            rf'<(?:script|style) nonce="{nonce}"[^>]*', page
        )
        assert "unsafe" not in policy
        assert not re.search(r'\bon\w+="|style="|(?:src|href)="(?!data:,")', page)
        nonces.add(nonce)
    assert len(nonces) == 2


def test_names_of_strangers_are_only_text(index: Index, embedder: Embedder) -> None:
    strange = Index(index.folder)
    strange.meta["images"] = "the folder <script>alert(1)</script>\udcff"
    with served(Searcher(strange, embedder)) as ask:
        page = ask("GET", "/").content.decode()
    assert "the folder &lt;script&gt;alert(1)&lt;/script&gt;\\xff" in page


def test_it_describes_itself(ask: Client) -> None:
    described = json.loads(ask("GET", "/openapi.json").content)
    assert {*described["paths"]} == {"/search", "/neighbors/{row}", "/image/{row}"}
    schemas = described["components"]["schemas"]
    for name in ("Answer", "Neighbor", "Problem"):
        assert schemas[name]["description"]
        assert all(part["description"] for part in schemas[name]["properties"].values())
    for path in described["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert all(parameter["description"] for parameter in operation["parameters"])
            assert {"403", "408", "422", "503"} <= {*operation["responses"]}
            assert "HTTPValidationError" not in json.dumps(operation)
    assert "image/*" in described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert "image/webp" in described["paths"]["/image/{row}"]["get"]["responses"]["200"]["content"]
