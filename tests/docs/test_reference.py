"""The reference has every program, option, key, public name and room."""

import inspect
import re

import pytest
from flax import nnx

import noah_jax
from docs.site_pages import architecture, configuration, configurations, heads, programs
from docs.site_pages.text import inline, prose
from noah_jax.__main__ import PROGRAMS
from noah_jax.config import default_config, flat_config, head_key
from noah_jax.heads.registry import HEADS, make_head
from noah_jax.heads.spec import HeadSpec
from tests.helpers import ROOT

PAGES = programs.pages()
# Options are written so in the sources of the programs.
OPTION = re.compile(r'"(--(?!help)[a-z][\w-]*)"')


def _page(name):
    return PAGES[f"reference/programs/{name}.md"]


def test_every_program_has_its_page():
    assert {f"reference/programs/{name}.md" for name in [*PROGRAMS, "index"]} == set(PAGES)
    for name, about in PROGRAMS.items():
        assert f"[{name}]({name}.md)" in _page("index") and inline(about) in _page("index")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_of_a_program_is_on_its_page(name):
    source = (ROOT / "noah_jax" / name / "__main__.py").read_text()
    shown = set(re.findall(r"`(--[\w-]+)[` ]", _page(name)))
    assert set(OPTION.findall(source)) - shown == set()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_has_a_meaning(name):
    for words, parser in programs.parsers(name).items():
        unsaid = [action.dest for action in parser._actions if not action.help]
        assert unsaid == [], words


def test_shared_options_are_on_the_pages_of_the_programs_that_have_them():
    for option in ("--checkpoint PATH", "--ema", "--mean X[,X,X]", "--batch N", "--threads N"):
        assert f"`{option}`" in _page("predict")
    assert "`--config FILE[:VARIANT]` (required)" in _page("train")
    assert "--what step" in _page("benchmark") and "images a step (256)" in _page("benchmark")


def test_every_key_is_explained():
    about = configuration.meanings((ROOT / "noah_jax" / "config.py").read_text())
    keys = flat_config(default_config())
    assert keys.keys() - about.keys() == set(), "noah_jax/config.py has no comment for them"
    page = configuration.page()
    for key, default in keys.items():
        entry = page.partition(f"{{ #{key} }}")[2].partition("\n### ")[0]
        assert f"Default: `{default!r}`. Values: " in entry, key


def test_the_meaning_of_a_key_stands_above_or_behind_it():
    source = """
def default_config():
    config = ConfigDict()
    # About several keys.

    # Above it,
    # in two lines.
    config.a = 1
    config.b = "#"  # Behind it.
    # The section.
    config.c = ConfigDict()
    config.c.d = (  # Above
        1,
    )
    config.e = 2
"""
    assert configuration.meanings(source) == {
        "a": "Above it, in two lines.",
        "b": "Behind it.",
        "c": "The section.",
        "c.d": "Above",
    }


def test_every_head_and_option_is_described():
    page = heads.page()
    for name, kind in HEADS.items():
        entry = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        spec = HeadSpec(name, 2, 1, 0.5, options=kind.options)
        head = type(make_head(spec, 48, init={}, rngs=nnx.Rngs(params=0)))
        for about in (head, inspect.getmodule(head)):
            assert inspect.getdoc(about).partition("\n")[0][:60] in entry, name
        for option, default in kind.options.items():
            assert f"| `{option}` | `{default!r}` | " in entry and head_key(name, option) in entry


def test_every_configuration_file_is_described():
    page = configurations.page()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"## {path.name}\n" in page


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    errors = re.findall(r"^class (\w+)", (ROOT / "noah_jax" / "errors.py").read_text(), re.M)
    assert [name for name in noah_jax.__all__ if f"::: noah_jax.{name}\n" not in page] == []
    assert [name for name in errors if f"- {name}\n" not in page] == []


def test_every_room_and_file_has_its_line():
    page = architecture.page()
    for path in (ROOT / "noah_jax").rglob("*.py"):
        name = path.parent.name if path.name == "__init__.py" else path.name
        assert re.search(rf"- `{name}`: \S", page), path


def test_signs_of_text_stand_for_themselves():
    assert inline("a *.JPEG of\n<name>, [x]") == "a \\*.JPEG of \\<name>, \\[x\\]"
    assert inline("`a_b --c` --set-it=1, --no.") == "`a_b --c` `--set-it=1`, `--no`."
    assert inline("a_b in noah_jax/config.py, b.json. NOAH_X=1") == (
        "a\\_b in `noah_jax/config.py`, `b.json`. `NOAH_X=1`"
    )


def test_indented_examples_become_code():
    text = "Does it.\n\n    python -m it \\\n        --all\n\n    python -m it\n\nThat is all."
    code = "```shell\npython -m it \\\n    --all\n\npython -m it\n```"
    assert prose(text) == f"Does it.\n\n{code}\n\nThat is all."
    assert prose("So:\n\n>>> a\n1\n\nEnd.") == "So:\n\n```pycon\n>>> a\n1\n```\n\nEnd."
