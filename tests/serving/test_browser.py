"""The page in a real browser, as a person uses it: Debian's Chromium, headless, driven by Playwright."""

import base64
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.indexing.index import Index
from src.serving.app import BYTES
from tests.serving.conftest import COUNT, Client


class Said(list[str]):
    """What the console says; `expected`, and nothing else."""

    expected = ""


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def opened(browser: Any, ask: Client, said: Said) -> Iterator[Callable[..., Any]]:
    """Opens the page in a window of its own; afterwards, no other server was asked, and nothing complained."""
    contexts: list[Any] = []
    asked: list[str] = []

    def call(place: str = "", width: int = 1200, scheme: str = "light", port: int = ask.port) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"http://127.0.0.1:{port}/{place}")
        return tab

    yield call
    for context in contexts:
        context.close()
    assert [line for line in said if not said.expected or said.expected not in line] == []
    assert all(url.startswith(("http://127.0.0.1:", "blob:", "data:")) for url in asked)


def wait_for(look: Callable[[], Any], wanted: Any) -> None:
    """Until `look` sees what is wanted; the page lets nobody evaluate texts, so Playwright can't wait in it."""
    end = time.monotonic() + 60
    while (seen := look()) != wanted:
        assert time.monotonic() < end, seen
        time.sleep(0.05)


def title(tab: Any) -> str:
    return str(tab.locator("#title").inner_text())


def names(tab: Any) -> list[str]:
    return [re.sub(r"^[-\d.]+\s+", "", text) for text in tab.locator("#neighbors p").all_inner_texts()]


def nearest(index: Index, row: int, k: int, itself: bool = False) -> list[str]:
    order = (-(index.vectors @ index.vectors[row])).argsort(kind="stable")
    return [index.find(int(other)).name for other in order if itself or other != row][:k]


def drawn(tab: Any) -> bool:
    """Whether every image is there."""
    script = "[...document.querySelectorAll('#found img')].every(image => image.complete && image.naturalWidth > 0)"
    return bool(tab.evaluate(script))


def test_an_image_is_searched_with_and_what_is_found_too(index: Index, opened: Callable[..., Any]) -> None:
    tab = opened()
    assert not tab.locator("#found").is_visible()
    tab.set_input_files("#file", index.path(7))
    wait_for(lambda: title(tab), "Most similar to 0007.png")
    assert names(tab) == nearest(index, 7, 12, itself=True)
    assert tab.locator("#neighbors strong").first.inner_text() == "1.000"
    assert tab.locator("#status").inner_text() == f"12 of {COUNT} images"
    wait_for(lambda: drawn(tab), True)
    name = names(tab)[3]
    tab.locator("#neighbors a").nth(3).click()
    wait_for(lambda: title(tab), f"Most similar to {name}")
    row = int(tab.url.rpartition("#")[2])
    assert index.find(row).name == name
    assert names(tab) == nearest(index, row, 12)
    wait_for(lambda: drawn(tab), True)


def test_back_and_forward(index: Index, opened: Callable[..., Any]) -> None:
    tab = opened("#3")
    wait_for(lambda: title(tab), "Most similar to 0003.png")
    tab.set_input_files("#file", index.path(8))
    wait_for(lambda: title(tab), "Most similar to 0008.png")
    assert names(tab)[0] == "0008.png"
    third = f"Most similar to {names(tab)[1]}"
    tab.locator("#neighbors a").nth(1).click()
    wait_for(lambda: title(tab), third)
    tab.go_back()
    wait_for(lambda: title(tab), "Most similar to 0008.png")
    assert names(tab) == nearest(index, 8, 12, itself=True)
    tab.go_back()
    wait_for(lambda: title(tab), "Most similar to 0003.png")
    tab.go_forward()
    wait_for(lambda: title(tab), "Most similar to 0008.png")
    tab.go_forward()
    wait_for(lambda: title(tab), third)
    tab.reload()  # a row is found again by its address alone
    wait_for(lambda: title(tab), third)
    tab.go_back()  # an image that was given is not
    wait_for(lambda: tab.locator("#problem").inner_text()[:18], "That image is gone")


def test_how_many_are_shown(index: Index, opened: Callable[..., Any]) -> None:
    tab = opened("#3")
    wait_for(lambda: len(names(tab)), 12)
    tab.get_by_label("Show").select_option("24")
    wait_for(lambda: names(tab), nearest(index, 3, 24))
    tab.get_by_label("Show").select_option("100")
    wait_for(lambda: len(names(tab)), COUNT - 1)


GIVE = """([kind, bytes, type]) => {
  const file = new File([Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt())], "given.png", { type });
  const data = new DataTransfer();
  data.items.add(file);
  const options = { bubbles: true, cancelable: true };
  if (kind === "paste") document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
  else for (const name of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(name, { ...options, dataTransfer: data }));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(index: Index, opened: Callable[..., Any], kind: str) -> None:
    tab = opened()
    content = Path(index.path(11)).read_bytes()
    tab.evaluate(GIVE, [kind, base64.b64encode(content).decode(), "image/png"])
    wait_for(lambda: title(tab), "Most similar to given.png")
    assert names(tab) == nearest(index, 11, 12, itself=True)
    assert not tab.locator(".dragging").count()


def test_by_keyboard_alone(index: Index, opened: Callable[..., Any]) -> None:
    tab = opened("#5")
    choosers: list[Any] = []  # listened for from the start: Playwright does not wait until the browser knows of it
    tab.on("filechooser", lambda chooser: choosers.append(chooser))
    wait_for(lambda: title(tab), "Most similar to 0005.png")
    assert tab.evaluate("document.activeElement.id") == "title"
    for _ in range(2):
        tab.keyboard.press("Tab")
    name = names(tab)[1]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    tab.keyboard.press("Enter")
    wait_for(lambda: title(tab), f"Most similar to {name}")
    tab.go_back()
    wait_for(lambda: title(tab), "Most similar to 0005.png")
    for wanted in ("k", "file"):
        tab.keyboard.press("Shift+Tab")
        assert tab.evaluate("document.activeElement.id") == wanted
    assert tab.locator(".button").evaluate("label => getComputedStyle(label).outlineStyle") == "solid"
    tab.keyboard.press("Space")
    # Only while Playwright is asked something are events heard.
    wait_for(lambda: tab.evaluate("1") and len(choosers), 1)
    choosers[0].set_files(index.path(9))
    wait_for(lambda: title(tab), "Most similar to 0009.png")


def test_mistakes_are_told_in_words(opened: Callable[..., Any], said: Said, tmp_path: Path, index: Index) -> None:
    said.expected = "Failed to load resource"  # so Chromium says of every answer that is none
    tab = opened()
    problem = tab.locator("#problem")
    text = tmp_path / "text.png"
    text.write_text("no image")
    tab.set_input_files("#file", text)
    wait_for(lambda: problem.inner_text()[:40], "the image can't be decoded: it is no ima")
    assert not tab.locator("#found").is_visible()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(BYTES + 1))
    tab.set_input_files("#file", large)
    wait_for(problem.inner_text, "The image is larger than 10 MiB.")
    tab.evaluate(
        "document.body.dispatchEvent(new ClipboardEvent('paste', {bubbles: true, clipboardData: new DataTransfer()}))"
    )
    wait_for(problem.inner_text, "There was no image file in that.")
    tab.evaluate("location.hash = 4040")
    wait_for(problem.inner_text, "row 4040: the index has 40 images, 0 to 39")
    tab.set_input_files("#file", index.path(1))
    wait_for(lambda: title(tab), "Most similar to 0001.png")
    assert problem.inner_text() == ""
    tab.route("**/neighbors/**", lambda route: route.abort())
    tab.evaluate("location.hash = 2")
    wait_for(lambda: problem.inner_text()[:26], "The server does not answer")


def test_a_missing_image_has_a_placeholder(
    index: Index, opened: Callable[..., Any], said: Said, serve: Callable[[], Any]
) -> None:
    said.expected = "Failed to load resource"
    missing = Path(index.path(37))
    missing.rename(missing.with_suffix(".away"))
    try:
        with serve() as fresh:
            tab = opened("#37", port=fresh.port)
            wait_for(lambda: title(tab), "Most similar to 0037.png")
            wait_for(lambda: tab.locator("#query .missing").all_inner_texts(), ["not there"])
            wait_for(lambda: drawn(tab), True)
    finally:
        missing.with_suffix(".away").rename(missing)


def test_dark_and_light(opened: Callable[..., Any]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened().evaluate(paper) == "rgb(255, 255, 255)"
    assert opened(scheme="dark").evaluate(paper) != "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_on_a_phone_nothing_scrolls_sideways(index: Index, opened: Callable[..., Any], scheme: str) -> None:
    tab = opened(width=375, scheme=scheme)
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 375
    tab.set_input_files("#file", index.path(7))
    wait_for(lambda: len(names(tab)), 12)
    wait_for(lambda: drawn(tab), True)
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 375
    assert tab.locator("#neighbors li").nth(1).bounding_box()["x"] > 100  # two beside each other
    assert tab.locator(".button").bounding_box()["height"] >= 40  # to be hit by a thumb
