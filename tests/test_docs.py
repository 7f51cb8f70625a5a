"""The README and the pages under docs/: what they link to is there, and each page is found from the README."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = LINK.findall(page.read_text())
    for name, anchor in links:
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {name}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {name}#{anchor}"


def test_every_page_is_found_from_the_readme() -> None:
    linked = {name for name, _ in LINK.findall(PAGES[0].read_text())}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_every_choice_is_named_in_the_readme() -> None:
    """But for those of the callbacks and of a score's groupings, which docs/evaluation.md has."""
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGES[0].read_text()))))
    choices = [
        path for path in (ROOT / "conf").glob("*/**/*.yaml") if path.parent.name not in ("callbacks", "groupings")
    ]
    assert len(choices) > 60
    assert not [f"{path.parent.name}={path.stem}" for path in choices if path.stem not in named]
