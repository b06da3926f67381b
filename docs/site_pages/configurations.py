"""Makes the page of the configuration files from their docstrings."""

from .text import ROOT, docstring, prose

PATH = "reference/configurations.md"

_HEAD = """# Configurations

These files come with the package, so `--config resnet.py:noah_resnet50` works from any folder. What
a file does not set has [its default](configuration.md).
"""


def page() -> str:
    """Returns the page as Markdown."""
    parts = [_HEAD]
    for path in sorted((ROOT / "configs").glob("*.py")):
        parts += [f"## {path.name}", prose(docstring(path))]
    return "\n\n".join(parts) + "\n"
