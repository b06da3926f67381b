"""Fills in the folders of the navigation in mkdocs.yml."""

from collections.abc import Iterator, Sequence
from typing import Any


def expand(nav: Sequence[Any], pages: Sequence[str]) -> list[Any]:
    """Replaces `folder/*` by the pages in the folder that the navigation does not list itself.

    A section that is left empty is left out.

    Args:
      nav: The navigation: paths, and dicts from a title to a path or to a navigation.
      pages: The paths of all pages.
    """
    listed = set(_paths(nav))

    def expanded(item: Any) -> list[Any]:
        if isinstance(item, dict):
            (title, inside), *_ = item.items()
            if isinstance(inside, list):
                inside = [x for inner in inside for x in expanded(inner)]
            return [{title: inside}] if inside else []
        if not item.endswith("*"):
            return [item]
        folder = item.rpartition("/")[0]
        return sorted(p for p in pages if p.rpartition("/")[0] == folder and p not in listed)

    return [x for item in nav for x in expanded(item)]


def _paths(nav: Sequence[Any]) -> Iterator[str]:
    for item in nav:
        for inside in item.values() if isinstance(item, dict) else [item]:
            yield from _paths(inside) if isinstance(inside, list) else [inside]
