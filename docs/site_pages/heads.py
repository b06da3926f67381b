"""Makes the page of the heads from the rows of noah_jax/heads/registry.py."""

import inspect

from noah_jax.config import head_key
from noah_jax.heads.registry import HEADS, HeadKind

from . import configuration
from .text import ROOT, inline, prose

PATH = "reference/heads.md"

_HEAD = """# Heads

Every head reads the last feature map of any backbone, `[batch, *spatial, channels]`. Only `linear`
reads the class token of DeiT and PVT instead. In Python a head's name and its options go to
`create_model`, in a configuration to `model.head` and the section `head`:

```python
import noah_jax

model = noah_jax.create_model("resnet18", head="gem", head_options={"p": 3.0})
```

```shell
noah-jax train --config resnet.py:resnet18 --config.model.head=gem \\
    --config.head.gem.p=3.0 --workdir runs/gem
```

Options that are not given have their published defaults. NOAH's `head_num`, `key_ratio`,
`head_split` and `kv_split` are arguments of `create_model` and keys of the section `model`.
"""


def page() -> str:
    """Returns the page as Markdown."""
    source = (ROOT / "noah_jax" / "config.py").read_text(encoding="utf-8")
    about = configuration.meanings(source)
    parts = [_HEAD]
    for name, kind in HEADS.items():
        parts += [f"## {name}", *_docstrings(kind), _options(name, kind, about)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _docstrings(kind: HeadKind) -> list[str]:
    """Returns the docstring of a head's file, and that of its module without the arguments."""
    # A function says what it makes; a class's own method makes that class.
    made = getattr(kind.make, "__self__", None)
    if made is None:
        made = inspect.signature(kind.make, eval_str=True).return_annotation
    file, about = inspect.getdoc(inspect.getmodule(made)) or "", inspect.getdoc(made) or ""
    return [prose(file), prose(about.partition("\n\nArgs:")[0])]


def _options(name: str, kind: HeadKind, about: dict[str, str]) -> str:
    """Returns the table of a head's own options; empty if it has none."""
    rows = [
        f"| `{option}` | `{default!r}` | {inline(about[key])} | [`{key}`](configuration.md#{key}) |"
        for option, default in kind.options.items()
        for key in [head_key(name, option)]
    ]
    table = ["| option | default | meaning | key |", "|---|---|---|---|", *rows]
    return "\n".join(table) if rows else ""
