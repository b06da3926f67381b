"""Tests on accelerators, run by `pytest -m gpu` and `pytest -m tpu`."""

import re

KINDS = ("gpu", "tpu")


def asked_for(config) -> str | None:
    """Returns the kind of accelerator whose mark the command names."""
    for kind in KINDS:
        if re.search(rf"(?<!not )\b{kind}\b", config.option.markexpr):
            return kind
    return None
