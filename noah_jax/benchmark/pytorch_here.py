"""Tells whether PyTorch is installed to compare with."""

import importlib.util

TORCH_IS_MISSING = (
    "PyTorch is not installed, so there is nothing to compare with; pip install torch"
)


def torch_is_installed() -> bool:
    """Returns whether PyTorch can be imported, without importing it."""
    return importlib.util.find_spec("torch") is not None
