"""Leads the links of the pages, which are those of the repository, to the pages of the site."""

import posixpath
import re

from noah_jax.__main__ import PROGRAMS

from . import architecture, configuration, configurations, heads, tutorial
from .programs import FOLDER

# Pages that are files of the repository's root.
FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}

# What a link in the repository leads to, and the page that is made from it.
PAGES = {
    **{name: page for page, name in FROM_ROOT.items()},
    "configs": configurations.PATH,
    "docs/tutorial.ipynb": tutorial.PATH,
    "noah_jax": architecture.PATH,
    "noah_jax/__main__.py": f"{FOLDER}/index.md",
    "noah_jax/config.py": configuration.PATH,
    "noah_jax/heads/registry.py": heads.PATH,
    **{f"noah_jax/{name}/__main__.py": f"{FOLDER}/{name}.md" for name in PROGRAMS},
}

_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")


def relinked(text: str, page: str) -> str:
    """Returns a page's Markdown with the links that lead to other pages of the site.

    Args:
      text: The page, whose links are relative to its file in the repository.
      page: The page's path in the site.
    """
    folder = posixpath.dirname(FROM_ROOT.get(page, f"docs/{page}"))

    def leads(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if target not in PAGES and not target.startswith("docs/"):
            return link[0]
        path = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(path, posixpath.dirname(page) or '.')}{link[2] or ''})"

    return _LINK.sub(leads, text)
