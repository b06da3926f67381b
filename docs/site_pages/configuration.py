"""Makes the page of the configuration's keys from noah_jax/config.py and its table of values."""

import ast
import io
import re
import tokenize

from noah_jax.config import HOST_KEYS, OPERATIONAL_KEYS, default_config, flat_config
from noah_jax.config_names import RENAMED_KEYS
from noah_jax.config_values import RULES

from .text import ROOT, inline

PATH = "reference/configuration.md"
_BY_SIZE = "(size)"

_HEAD = """# Configuration keys

A configuration file starts from these defaults and sets what its result needs
([configurations](configurations.md)). The command line sets single keys:

```shell
python -m noah_jax.train --config quickstart.py --workdir runs/a --config.optim.learning_rate=0.1
```

A value that does not fit its key is an error in one line. `None` is written as
`--config.init_from=None`.
"""


def page() -> str:
    """Returns the page as Markdown."""
    source = (ROOT / "noah_jax" / "config.py").read_text(encoding="utf-8")
    about = meanings(source)
    defaults = flat_config(default_config())
    parts = [_HEAD, "## The whole run"]
    section = ""
    # As in the file, where the keys of the whole run stand between the sections.
    in_order = sorted(defaults, key=list(about).index)
    sections = [*dict.fromkeys(map(_section, in_order))]
    for key in sorted(in_order, key=lambda key: sections.index(_section(key))):
        if _section(key) != section:
            section = _section(key)
            parts.append(f"## Section {section}")
            if section in about:
                parts.append(inline(about[section]))
        parts.append(_entry(key, defaults[key], about[key]))
    renamed = [f"| `{old}` | `{new}` |" for old, new in sorted(RENAMED_KEYS.items())]
    parts += [
        "## Old names",
        "Runs of older versions resume although their keys had other names.",
        "\n".join(["| old | now |", "|---|---|", *renamed]),
    ]
    return "\n\n".join(parts) + "\n"


def meanings(source: str) -> dict[str, str]:
    """Returns the comment of each key and section in the source of noah_jax/config.py.

    A comment belongs to a key if it stands directly above the key, or behind it.
    """
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in _function(source, "default_config").body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        first = node.lineno
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        own = [comments[n] for n in range(first, (node.end_lineno or first) + 1) if n in comments]
        text = " ".join(comment.lstrip("# ") for comment in own)
        if text:
            found[ast.unparse(node.targets[0]).removeprefix("config.")] = text
    return found


def _function(source: str, name: str) -> ast.FunctionDef:
    """Returns a function of a module's source."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise KeyError(name)


def _section(key: str) -> str:
    return key.partition(".")[0] if "." in key else ""


def _entry(key: str, default: object, meaning: str) -> str:
    sentences = [re.sub(r"(?<![.;:])$", ".", inline(meaning.replace(_BY_SIZE, "").strip()))]
    if _BY_SIZE in meaning:
        sentences.append("None lets the run choose it by the number of images.")
    if key in HOST_KEYS:
        sentences.append("It may differ between the hosts of a run.")
    elif key in OPERATIONAL_KEYS:
        sentences.append("A resumed run may change it.")
    return "\n\n".join(
        [
            f"### `{key}` {{ #{key} }}",
            " ".join(sentences),
            f"Default: `{default!r}`. Values: {inline(RULES[key].expected)}.",
        ]
    )
