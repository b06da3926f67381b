"""Links between the Markdown files lead somewhere, and the navigation has every page."""

import pathlib
import re

import pytest
import yaml

from docs.site_pages import (
    architecture,
    configuration,
    configurations,
    heads,
    links,
    programs,
    tutorial,
)
from docs.site_pages.navigation import expand
from tests.helpers import ROOT

DOCS = ROOT / "docs"
# Pages that exist in the site only.
MADE = {
    *programs.pages(),
    *(architecture.PATH, configuration.PATH, configurations.PATH, heads.PATH, tutorial.PATH),
    *("changelog.md", "contributing.md"),
}
FILES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def _targets(text: str) -> list[str]:
    """The links in a Markdown text to other places than the web."""
    found = [a or b for a, b in LINK.findall(CODE.sub("`code`", text))]
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def _anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and as MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda m: m[0].strip("`"), text), re.MULTILINE)
    named = set(re.findall(r"\{ *#([^\s}]+) *\}|id=\"([^\"]+)\"", text))
    plain = {re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings}
    dashed = {heading.replace(" ", "-") for heading in plain}
    return {*dashed, *(re.sub("-+", "-", heading) for heading in dashed)} | {
        name for pair in named for name in pair if name
    }


def _leads_somewhere(link: str, path: pathlib.Path) -> bool:
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not anchor or target.suffix != ".md":  # MkDocs checks the anchors of pages that are made.
        return target.exists()
    return target.exists() and anchor in _anchors(target.read_text())


def _broken(path: pathlib.Path) -> list[str]:
    return [link for link in _targets(path.read_text()) if not _leads_somewhere(link, path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_resolve(path):
    assert _broken(path) == []


def test_a_broken_link_is_seen(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("## A `b`: c\n[a](#a-b-c) [b](#b) [c](none.md) [d](other.md#none) `[e](e.md)`")
    other.write_text('[f](page.md#a-b-c) <img src="none.png"> [g](https://example.com/none)')
    assert _broken(page) == ["#b", "none.md", "other.md#none"]
    assert _broken(other) == ["none.png"]


def test_links_lead_to_the_pages_that_are_made_from_the_code():
    """In the repository they lead to the file that the page is made from."""
    assert set(links.PAGES.values()) == MADE
    assert [path for path in links.PAGES if not (ROOT / path).exists()] == []
    text = (
        "[a](../../noah_jax/config.py#seed) [b](../results.md) [c](../../setup.py) [d](https://e.f)"
    )
    assert links.relinked(text, "guides/own-data.md") == (
        "[a](../reference/configuration.md#seed) [b](../results.md) [c](../../setup.py)"
        " [d](https://e.f)"
    )
    assert links.relinked("[a](docs/gpu.md) [b](configs/) [c](#d)", "changelog.md") == (
        "[a](gpu.md) [b](reference/configurations.md) [c](#d)"
    )


def test_the_navigation_has_every_page_once():
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w/.-]+\.md", str(expand(nav, sorted(written | MADE))))
    assert sorted(listed) == sorted(written | MADE)


def test_a_folder_in_the_navigation_is_its_other_pages():
    nav = ["index.md", {"Guides": ["guides/b.md", "guides/*"]}, {"Empty": ["empty/*"]}]
    pages = ["guides/c.md", "guides/b.md", "guides/a.md", "index.md"]
    assert expand(nav, pages) == [
        "index.md",
        {"Guides": ["guides/b.md", "guides/a.md", "guides/c.md"]},
    ]
