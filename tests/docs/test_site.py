"""The site builds strictly, and its pages take nothing from the web."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(name, reason="needs the extra docs")

# What a browser loads by itself; links that a reader may follow are no matter.
LOADED = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:)?//|url\(\W?https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_in_the_site(site):
    for path in (ROOT / "docs").rglob("*.md"):
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html").exists()
    for name in ("architecture", "changelog", "reference/programs/train", "tutorial"):
        assert (site / f"{name}.html").exists()


def test_the_api_shows_arguments_and_examples(site):
    page = (site / "reference" / "python.html").read_text()
    for name in ("noah_jax.NOAH", "noah_jax.create_model", "noah_jax.models.base.Model.predict"):
        assert f'id="{name}"' in page
    assert "&gt;&gt;&gt;" in page and "<blockquote>" not in page
    assert "<code>`" not in page  # A colon in the first line of Returns makes it a type.


def test_keys_have_anchors(site):
    assert 'id="optim.momentum"' in (site / "reference" / "configuration.html").read_text()


def test_nothing_comes_from_the_web(site):
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert [file for file in files if LOADED.search(file.read_text())] == []


def test_what_makes_the_pages_is_no_part_of_the_site(site):
    assert list(site.rglob("*.py")) == []
