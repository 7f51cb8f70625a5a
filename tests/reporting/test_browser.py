"""The page in a real browser, as a reader uses it: Debian's Chromium, headless, driven by Playwright."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from src.reporting import page as pages
from src.reporting.results import find_results
from tests.reporting.conftest import changed, write_runs
from tests.reporting.test_page import EVIL
from tests.reporting.test_results import HISTOGRAM


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page in a window of its own; afterwards, nothing was asked of a network, and nothing complained."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def call(path: Path, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield call
    for context in contexts:
        context.close()
    assert not said
    assert {url.partition(":")[0] for url in asked} <= {"data", "file"}
    assert {url.rpartition("/")[2] for url in asked if url.startswith("file")} == {"index.html"}


@pytest.fixture(scope="module")
def few(result: dict[str, Any], shared_folder: Path) -> Path:
    """The page of three settings, a seed each."""
    names = ("full", "no_crop", "no_gray")
    spaces = {space: {"classes": HISTOGRAM} for space in ("embedding", "pooled")}
    runs = [changed(result, seed, choices__augmentation=name, histograms=spaces) for seed, name in enumerate(names)]
    for score, run in zip((30.0, 9.5, 50.25), runs, strict=True):
        run["last"]["knn/top1"] = score
    return page_of(runs, [("failed", "x", "no space")], shared_folder / "few")


@pytest.fixture(scope="module")
def many(result: dict[str, Any], shared_folder: Path) -> Path:
    """The page of a thousand runs of 334 settings."""
    runs = [
        changed(result, n % 3, config__method__temperature=(n // 3 + 1) / 100, last__extra=1.0) for n in range(1000)
    ]
    return page_of(runs, [], shared_folder / "many")


def page_of(runs: list[dict[str, Any]], left_out: list[tuple[str, str, str]], folder: Path) -> Path:
    """The page of these runs, made once."""
    page = folder / "page" / "index.html"
    with FileLock(f"{folder}.lock"):
        if not page.exists():
            write_runs(folder / "runs", runs)
            pages.write(page.parent, find_results([folder / "runs"])[0], left_out, {})
    return page


def column(tab: Any, name: str, number: int) -> list[str]:
    """The texts of a column of the table called `name`."""
    return list(tab.locator(f"[aria-label={name!r}] tbody tr td:nth-child({number})").all_inner_texts())


def test_what_is_shown_is_what_was_measured(few: Path, opened: Any) -> None:
    tab = opened(few)
    assert column(tab, "Runs", 4) == ["30.00", "9.50", "50.25"]
    assert column(tab, "Scores", 4) == ["30.00", "9.50", "50.25"]
    assert "Figure" in tab.locator("nav").inner_text()


def test_sorting_by_click_and_by_keyboard(few: Path, opened: Any) -> None:
    tab = opened(few)
    button = tab.locator("[aria-label='Runs'] thead button", has_text="last epoch").first
    button.click()
    assert column(tab, "Runs", 4) == ["50.25", "30.00", "9.50"]
    head = tab.locator("[aria-label='Runs'] th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert column(tab, "Runs", 4) == ["9.50", "30.00", "50.25"]
    assert head.get_attribute("aria-sort") == "ascending"


def test_filtering_by_text_and_by_column(few: Path, opened: Any) -> None:
    tab = opened(few)
    tab.get_by_label("Filter Runs", exact=True).fill("NO_")
    assert column(tab, "Runs", 1) == ["augmentation=no_crop", "augmentation=no_gray"]
    tab.locator("[data-table=runs] button", has_text="Filter by column").click()
    tab.locator("[aria-label='Runs']").get_by_label("Filter last epoch", exact=True).fill(">= 50.25")
    assert column(tab, "Runs", 1) == ["augmentation=no_gray"]
    assert tab.locator("[data-table=runs] .status").inner_text() == "1 of 3 rows"
    tab.get_by_label("Score", exact=True).select_option("knn/top5")
    assert len(column(tab, "Scores", 1)) == 3


def test_choices_outlive_a_reload(few: Path, opened: Any) -> None:
    tab = opened(few)
    tab.locator("[aria-label='Runs'] thead button", has_text="last epoch").first.click()
    tab.get_by_label("Filter Runs", exact=True).fill("no_")
    tab.locator(".legend button").nth(1).click()
    tab.get_by_label("Score", exact=True).select_option("geometry/rank")
    tab.reload()
    assert column(tab, "Runs", 4) == ["50.25", "9.50"]
    pressed = [button.get_attribute("aria-pressed") for button in tab.locator(".legend button").all()]
    assert pressed == ["true", "false", "true"]
    assert tab.get_by_label("Score", exact=True).input_value() == "geometry/rank"


def wait_for(look: Callable[[], Any]) -> Any:
    """What `look` sees, once that is anything; the page lets nobody evaluate texts, so Playwright can't wait in it."""
    end = time.monotonic() + 60
    while not (seen := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return seen


def shown(tab: Any) -> list[str]:
    script = "Chart.getChart(document.querySelector('canvas')).data.datasets.filter(d => d.mean).map(d => d.label)"
    return list(tab.evaluate(script))


def test_curves_hide_at_a_click_and_are_read_by_keyboard(few: Path, opened: Any) -> None:
    tab = opened(few)
    assert len(shown(tab)) == 3
    tab.locator(".legend button").nth(0).click()
    assert shown(tab) == ["augmentation=no_crop", "augmentation=no_gray"]
    canvas = tab.locator("canvas")
    canvas.focus()
    tab.keyboard.press("End")
    assert tab.locator(".readout").inner_text() == "epoch 2: augmentation=no_crop: 9.5; augmentation=no_gray: 50.25"
    tab.keyboard.press("Home")
    assert tab.locator(".readout").inner_text().startswith("epoch 0: augmentation=no_crop: ")
    tab.get_by_role("button", name="Hide all").press("Space")
    assert shown(tab) == []
    tab.get_by_role("button", name="Show all").press("Space")
    assert len(shown(tab)) == 3


def test_curves_show_their_values_on_hover(few: Path, opened: Any) -> None:
    tab = opened(few)
    tab.locator("canvas").scroll_into_view_if_needed()
    box = tab.locator("canvas").bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 12, box["y"] + box["height"] / 2)
    title = "Chart.getChart(document.querySelector('canvas')).tooltip.title"
    assert wait_for(lambda: tab.evaluate(title)) == ["epoch 2"]
    lines = tab.evaluate("Chart.getChart(document.querySelector('canvas')).tooltip.body.flatMap(part => part.lines)")
    assert lines[0] == "augmentation=no_gray: 50.25"


def test_figures_zoom_and_escape_closes(few: Path, opened: Any) -> None:
    tab = opened(few)
    assert tab.locator("#figures .zoom").count() == 3
    first = tab.locator("#figures .zoom").first
    for enlarge in (first.click, lambda: first.press("Enter")):
        enlarge()
        large = tab.locator("#picture img")
        assert large.is_visible()
        assert large.evaluate("image => image.naturalWidth") > 700
        tab.keyboard.press("Escape")
        assert not tab.locator("#picture").is_visible()
        assert first.evaluate("button => button === document.activeElement")


def test_a_run_says_its_command_and_its_differences(few: Path, opened: Any) -> None:
    tab = opened(few)
    tab.get_by_role("button", name="augmentation=no_crop").last.press("Enter")
    assert "augmentation=no_crop" in tab.locator("#run-command").inner_text()
    assert tab.locator("#run-title").inner_text() == "augmentation=no_crop, seed 1"
    tab.keyboard.press("Escape")
    assert not tab.locator("#run").is_visible()


def test_everything_is_reached_by_tab_with_a_visible_focus(few: Path, opened: Any) -> None:
    tab = opened(few)
    seen = set()
    for _ in range(90):
        tab.keyboard.press("Tab")
        name, outline = tab.evaluate(
            "(e => [`${e.tagName}.${e.className}`, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        assert outline != "none" or name == "BODY.", name
        seen.add(name)
    assert {"A.", "BUTTON.", "INPUT.", "SELECT.", "CANVAS.", "BUTTON.zoom", "BUTTON.link", "DIV.scroll"} <= seen


def test_dark_and_light(few: Path, opened: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened(few).evaluate(paper) == "rgb(255, 255, 255)"
    tab = opened(few, scheme="dark")
    dark = tab.evaluate(paper)
    assert dark != "rgb(255, 255, 255)"
    tab.get_by_role("button", name="Dark or light").click()
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    tab.reload()
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    tab.locator("#theme").press("Enter")
    assert tab.evaluate(paper) == dark


def test_on_a_phone_nothing_scrolls_sideways(few: Path, many: Path, opened: Any) -> None:
    for path in (few, many):
        tab = opened(path, width=375)
        tab.locator("[data-table=runs] button", has_text="Filter by column").click()
        tab.locator("summary").first.click()
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= 375
        tab.locator("[aria-label='Runs'] tbody button").first.click()
        assert tab.locator("#run").bounding_box()["width"] <= 375


def test_a_thousand_runs(many: Path, opened: Any, record_property: Any) -> None:
    began = time.perf_counter()
    tab = opened(many)
    tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    record_property("seconds until drawn", time.perf_counter() - began)
    assert time.perf_counter() - began < 60
    assert tab.locator("[aria-label='Runs'] tbody tr").count() == 1000
    assert len(shown(tab)) == 12
    tab.get_by_label("Filter Runs", exact=True).fill("temperature=0.07")
    assert set(column(tab, "Runs", 1)) == {"method.temperature=0.07"}
    tab.get_by_role("button", name="Show all").click()
    assert len(shown(tab)) == 334


def test_a_strangers_names_run_nothing(result: dict[str, Any], tmp_path: Path, opened: Any) -> None:
    runs = [changed(result, 0, choices__method=EVIL, config__method__note=EVIL), changed(result, 1)]
    for run in runs:
        run["protocol"]["query"] = EVIL
        run["history"][0][EVIL] = 1.0
    write_runs(tmp_path / EVIL.replace("/", "|"), runs)
    pages.write(tmp_path / "page", find_results([tmp_path])[0], [("failed", EVIL, EVIL)], {})
    tab = opened(tmp_path / "page" / "index.html")
    tab.locator("[aria-label='Runs'] tbody button").first.click()
    assert EVIL in tab.locator("#run-title").inner_text()
    assert tab.evaluate("window.hit") is None


def test_a_page_that_is_watched_loads_itself(result: dict[str, Any], tmp_path: Path, opened: Any) -> None:
    (folder,) = write_runs(tmp_path / "runs", [changed(result)])
    pages.write(tmp_path / "page", find_results([tmp_path / "runs"])[0], [("running", "x", "")], {}, refresh=1)
    tab = opened(tmp_path / "page" / "index.html")
    tab.get_by_label("Filter Runs", exact=True).fill("spread")
    (folder / "results.json").write_text(json.dumps(changed(result) | {"seed": 77}))
    pages.write(tmp_path / "page", find_results([tmp_path / "runs"])[0], [], {})

    from playwright.sync_api import Error

    def is_new() -> bool:
        try:
            return column(tab, "Runs", 2) == ["77"]
        except Error:  # in the midst of loading
            return False

    assert wait_for(is_new)
    assert tab.get_by_label("Filter Runs", exact=True).input_value() == "spread"
    assert tab.get_by_label("Filter Runs", exact=True).evaluate("input => input === document.activeElement")
