"""Turns the text of docstrings, help and comments into Markdown."""

import ast
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).parents[2]

# What is shown as code although no backticks mark it: options, variables and paths of files.
_CODE = re.compile(
    r"(?<![\w`/-])(--[a-zA-Z][\w.-]*\w(?:=\w+)?|NOAH_\w+(?:=\w+)?|gs://[\w./]*"
    r"|(?:noah_jax|configs|scripts|tests|docs)/[\w./]*\w|\w+\.(?:py|json|csv|png|md)\b(?::\w+)?)"
)


def docstring(path: pathlib.Path) -> str:
    """Returns the docstring of a Python file; empty if it has none."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def inline(text: str) -> str:
    """Returns text as Markdown: options become code, other signs stand for themselves."""
    pieces = re.split(r"(`+[^`]*`+)", " ".join(text.split()))
    for position in range(0, len(pieces), 2):
        words = re.split(_CODE, pieces[position])
        words[0::2] = [re.sub(r"([\\*_<\[\]])", r"\\\1", word) for word in words[0::2]]
        words[1::2] = [f"`{word}`" for word in words[1::2]]
        pieces[position] = "".join(words)
    return "".join(pieces)


def prose(text: str) -> str:
    """Returns a docstring as Markdown: paragraphs, and examples as blocks of code."""
    blocks = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    joined: list[str] = []
    for block in blocks:
        if _is_code(block) and joined and _is_code(joined[-1]):
            joined[-1] += f"\n\n{block}"
        else:
            joined.append(block)
    return "\n\n".join(_block(block) for block in joined)


def _block(block: str) -> str:
    if block.startswith(">>>"):
        return f"```pycon\n{block}\n```"
    return _fenced(block) if _is_code(block) else inline(block)


def _is_code(block: str) -> bool:
    return all(line.startswith("    ") for line in block.splitlines() if line.strip())


def _fenced(block: str) -> str:
    code = textwrap.dedent(block)
    language = "shell" if code.startswith(("python", "noah-jax")) else "text"
    return f"```{language}\n{code}\n```"
