"""README.md and docs/: their Python runs, and the commands, keys and messages they name exist."""

import importlib
import importlib.util
import os
import re
import shlex
import tomllib

import pytest

from noah_jax.__main__ import PROGRAMS
from noah_jax.cli import load_config
from noah_jax.config_flags import parse_config
from noah_jax.config_values import RULES
from tests.helpers import ROOT
from tests.test_options_in_messages import OPTIONS, _texts

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((*DOCS.glob("*.md"), *DOCS.glob("guides/*.md"), *DOCS.glob("concepts/*.md"))),
]
BLOCK = re.compile(r"(<!-- not run: .+ -->\n\n?)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:noah-jax|python -m noah_jax[. ])\s*(\w+)((?:\\\n|[^\n`|;&])*)")
OPTION = re.compile(r"(?<![\w-])--([A-Za-z_][\w.-]*)")


def _blocks(path, language: str) -> list[str]:
    """The code blocks of a page in a language, but for those that say why they are not run."""
    found = BLOCK.findall(path.read_text())
    return [code for mark, name, code in found if name == language and not mark]


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page, tiny_run, tmp_path, monkeypatch):
    """From the first block to the last, where `runs/quickstart` is a trained run."""
    (tmp_path / "runs").mkdir()
    os.symlink(tiny_run, tmp_path / "runs" / "quickstart")
    os.symlink(DOCS, tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, code in enumerate(_blocks(page, "python"), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_commands_of_a_page_exist(page):
    unknown = []
    for program, arguments in COMMAND.findall(page.read_text()):
        if program == "NAME":
            continue
        if program not in PROGRAMS:
            unknown.append(program)
            continue
        arguments = arguments.partition("#")[0]
        for option in OPTION.findall(arguments):
            name = option.partition("=")[0].rstrip(".")
            key = name.removeprefix("config.")
            if not (key in RULES if key != name else name in OPTIONS[program]):
                unknown.append(f"{program} --{name}")
    keys = re.findall(r"--config\.([\w.]*\w)", page.read_text())
    assert unknown + [key for key in keys if key not in RULES] == []


def test_the_readme_is_a_front_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    for link in ("https://arxiv.org/abs/2402.02377", "https://github.com/OSVAI/NOAH"):
        assert f"]({link})" in text
    for command in (
        "pip install -e '.[train]' && python -m noah_jax.train",
        "pip install -e '.[test]' && pytest",
    ):
        assert f"\n{command}" in text


@pytest.mark.parametrize("heading", ["Results", "What the head costs"])
def test_every_number_of_the_readme_says_where_it_comes_from(heading):
    """The last cell of each row is its source; what was measured has a date."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert rows[0][-1].strip() == "where from"
    measured = re.compile(r"measured here, .*\d{4}-\d\d-\d\d")
    known = ("published by the authors", "estimated by a compiler", "counted")
    unmarked = [
        r for r in rows[2:] if r[-1].strip() not in known and not measured.match(r[-1].strip())
    ]
    assert rows[2:] and unmarked == []


def test_the_numbers_of_the_readme_are_those_of_the_results():
    number = re.compile(r"\d[\d,]*[.,]\d+")
    rows = [x.split("|")[1:-1] for x in README.read_text().splitlines() if x.startswith("|")]
    cells = [re.sub(r"\(.*?\)", "", cell) for row in rows for cell in row[1:-1]]
    shown = set(number.findall(" ".join(cells)))
    assert len(shown) > 20
    assert shown - set(number.findall((DOCS / "results.md").read_text())) == set()


def _commands(path) -> list[tuple[str, list[str]]]:
    """The programs that a page's shell blocks run, and their arguments."""
    code = "".join(_blocks(path, "shell")).replace("\\\n", " ").replace("&&", "\n")
    found = re.findall(r"^(?:noah-jax |python -m noah_jax\.)(\w+)(.*)$", code, re.MULTILINE)
    return [(program, shlex.split(arguments)) for program, arguments in found]


@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p)], ids=lambda p: p.stem)
def test_the_programs_take_the_commands_of_a_page(page):
    for program, words in _commands(page):
        module = importlib.import_module(f"noah_jax.{program}.__main__")
        if program == "benchmark":
            assert words.pop(0) == "--what"
            parser = module._parser(words.pop(0))
        else:
            parser = module._parser()
        parsed = parser.parse_args(words)
        if program == "train":
            load_config(parsed)


def test_configurations_that_pages_mention_exist():
    named = {x for p in PAGES for x in re.findall(r"`(\w+\.py:\w+)`", p.read_text())}
    assert "finetune.py:linear" in named
    for name in sorted(named):
        parse_config(["--config", name])


def test_the_extras_that_pages_install_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {x for p in PAGES for x in re.findall(r"\.\[(\w+)\]", p.read_text())}
    assert named >= {"train", "test", "docs"}
    assert named - project["optional-dependencies"].keys() == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text()
    named = re.findall(r"(?<![\w/])((?:noah_jax|configs|scripts|tests)/[\w./-]+\.\w+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_symptoms_in_troubleshooting_are_messages_of_the_programs():
    """Each heading quotes a message; `...` stands for what is different each time."""
    texts = [
        re.sub(r"\s+", " ", text)
        for path in (ROOT / "noah_jax").rglob("*.py")
        for text in _texts(path)
    ]
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert quoted

    def is_said(message: str) -> bool:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        return any(all(part in text for part in parts) for text in texts)

    assert [message for message in quoted if not is_said(message)] == []


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_figure_of_the_head_is_what_its_script_draws():
    drawn = _script("make_head_figure").figure()
    assert drawn == (DOCS / "images" / "head.svg").read_text()


def test_the_charts_show_what_the_tables_say():
    """After a change of a table: `python scripts/make_charts.py`."""
    for name, chart in _script("make_charts").charts().items():
        assert chart == (DOCS / "figures" / name).read_text(), name
