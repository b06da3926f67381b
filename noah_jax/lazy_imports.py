"""Makes the names of a package importable without importing their modules before they are used.

JAX and Flax take seconds to import, and no command line should wait for them to print its help.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a package (PEP 562).

    Args:
      package: The `__name__` of the package.
      homes: For each name the module that defines it.

    Returns:
      A function that imports the module of a name and returns what it has of that name; it raises
      an AttributeError for other names.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
