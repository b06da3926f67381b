"""Whatever option or key a message names exists."""

import ast
import importlib
import re

import pytest

from noah_jax.__main__ import PROGRAMS
from noah_jax.benchmark.__main__ import BENCHMARKS
from noah_jax.benchmark.__main__ import _parser as benchmark_parser
from noah_jax.config_names import RENAMED_KEYS
from noah_jax.config_values import RULES
from tests.helpers import ROOT

OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w.-]*)")
KEY = re.compile(r"(?<![\w./'\"-])((?:data|optim|asymmetric)\.[a-z_]+(?:\.[a-z_]+)?)(?![\w(/])")
# Options of other programs, which messages and help texts show.
OTHERS = {
    *("logdir", "help", "version", "noconfig", "no-deps", "xla_jf_dump_to", "xla_jf_dump_llo_text")
}
NOT_KEYS = re.compile(r"data\.json")


def _options(program: str) -> set[str]:
    if program == "benchmark":
        parsers = [benchmark_parser(what) for what in BENCHMARKS]
        return {"what"} | {o for p in parsers for o in _names(p)}
    return set(_names(importlib.import_module(f"noah_jax.{program}.__main__")._parser()))


def _names(parser):
    return [name.lstrip("-") for name in parser._option_string_actions]


OPTIONS = {program: _options(program) for program in PROGRAMS}
EVERY = set().union(*OPTIONS.values())


def _texts(path):
    """The texts of a file that somebody may read: not the docstrings of functions and classes."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and not (isinstance(node, ast.Module) and path.name == "__main__.py")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            docs |= {id(value) for value in node.values}
            parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
            yield "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        ):
            yield node.value


def _unknown(path) -> list[str]:
    program = path.relative_to(ROOT / "noah_jax").parts[0]
    # Training says which programs go on with its run, and compare starts trainings.
    of_others = program in ("train", "compare")
    known = (EVERY if of_others else OPTIONS.get(program, EVERY)) | OTHERS
    unknown = []
    for text in _texts(path):
        called = [OPTIONS[other] for other in PROGRAMS if re.search(rf"\b{other} --", text)]
        for option in OPTION.findall(text):
            name = option.rstrip(".-").partition("=")[0]
            if name.startswith("config."):
                key = name.removeprefix("config.")
                fits = key in RULES or key == "KEY" or key.startswith("model.") or key == ""
            else:
                fits = name in known.union(*called)
            if not fits:
                unknown.append(f"--{option} in {text[:70]!r}")
        for key in KEY.findall(text):
            known_key = key in {*RULES, *RENAMED_KEYS} or f"{key}." in " ".join(RULES)
            if not known_key and not NOT_KEYS.match(key):
                unknown.append(f"{key} in {text[:70]!r}")
    return unknown


@pytest.mark.parametrize(
    "room", sorted({p.relative_to(ROOT).parts[1] for p in (ROOT / "noah_jax").rglob("*.py")})
)
def test_every_option_and_key_that_a_text_names_exists(room):
    where = ROOT / "noah_jax" / room
    files = sorted(where.rglob("*.py")) if where.is_dir() else [where]
    assert {path.name: found for path in files if (found := _unknown(path))} == {}


def test_an_option_that_does_not_exist_is_seen():
    for text in (
        "give --overwrit",
        "--config.optim.lr=1",
        "set optim.learning_rat",
        "prepare --dri",
    ):
        path = ROOT / "noah_jax" / "export" / "imaginary.py"
        found = _unknown_in(path, f"def f():\n    raise ValueError('{text}')\n")
        assert len(found) == 1, text


def _unknown_in(path, source):
    class Imaginary(type(path)):
        def read_text(self, *unused):
            return source

    return _unknown(Imaginary(path))
