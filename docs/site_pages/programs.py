"""Makes a page for each program from its docstring and its parser."""

import argparse
import importlib

from noah_jax.__main__ import PROGRAMS
from noah_jax.cli import Parser

from .text import inline, prose

FOLDER = "reference/programs"


def pages() -> dict[str, str]:
    """Returns the pages of all programs and the list of them, by their paths in the site."""
    own = {f"{FOLDER}/{name}.md": _page(name) for name in PROGRAMS}
    return {f"{FOLDER}/index.md": _overview(), **own}


def parsers(name: str) -> dict[str, Parser]:
    """Returns the parsers of a program by the words that choose one of several, often none."""
    module = importlib.import_module(f"noah_jax.{name}.__main__")
    if not hasattr(module, "BENCHMARKS"):
        return {"": module._parser()}
    return {f"--what {what}": module._parser(what) for what in module.BENCHMARKS}


def _overview() -> str:
    rows = [f"| [{name}]({name}.md) | {inline(about)} |" for name, about in PROGRAMS.items()]
    return "\n".join(
        [
            "# Programs",
            "",
            "`noah-jax NAME ...` and `python -m noah_jax.NAME ...` start the same program."
            " `--help` shows what these pages show.",
            "",
            "| program | what it does |",
            "|---|---|",
            *rows,
            "",
            "A mistake gives one line on standard error and the exit code 1."
            " `NOAH_TRACEBACK=1` in the environment shows where it came from.",
            "",
        ]
    )


def _page(name: str) -> str:
    module = importlib.import_module(f"noah_jax.{name}.__main__")
    parts = [f"# {name}", prose(module.__doc__ or "")]
    for words, parser in parsers(name).items():
        parts.append(f"## Options of {words}" if words else "## Options")
        if words and parser.description:
            parts.append(inline(parser.description))
        parts += [_option(parser, action) for action in parser._actions]
        if parser._takes_config:
            parts.append(
                "[Configuration keys](../configuration.md) explains every key,"
                " [configurations](../configurations.md) the files."
            )
    return "\n\n".join(parts) + "\n"


def _option(parser: Parser, action: argparse.Action) -> str:
    """Returns an option as an entry of a definition list."""
    formatter = argparse.HelpFormatter(prog=parser.prog)
    names = formatter._format_action_invocation(action)
    required = " (required)" if action.required and action.option_strings else ""
    meaning = formatter._expand_help(action) if action.help else ""
    return f"`{names}`{required}\n:   {inline(meaning)}"
