"""Names the variants of a configuration that have one head or the other."""

from collections.abc import Sequence

HEADS = ("linear", "noah")
_NOAH_KEYS = ("model.head_num", "model.key_ratio", "model.head_split", "model.kv_split")
DEFAULT_CONFIGS = ("configs/quickstart.py", "configs/sample.py:deit", "configs/sample.py:mixer")


def variant_for(config: str, head: str) -> str:
    """Returns `FILE:VARIANT` of a configuration with a head.

    Args:
      config: `FILE`, or `FILE:VARIANT` with any head.
      head: One of `HEADS`.
    """
    file, _, variant = config.partition(":")
    backbone = variant.removeprefix("noah_")
    if backbone in ("", *HEADS):
        return f"{file}:{head}"
    return f"{file}:{backbone if head == 'linear' else 'noah_' + backbone}"


def overrides_for(head: str, overrides: Sequence[str]) -> list[str]:
    """Returns the words that set single keys, without NOAH's own keys for the linear head."""
    words = []
    value_follows = False
    for word in overrides:
        if value_follows:
            value_follows = False
            continue
        key, equals, _ = word.removeprefix("--config.").partition("=")
        if head == "linear" and key in _NOAH_KEYS:
            value_follows = not equals
            continue
        words.append(word)
    return words


def folder_name(config: str, head: str, seed: int) -> str:
    """Returns the name of the folder for one training."""
    name = config.replace(".py", "").removeprefix("configs/")
    for mark in ":/\\.":
        name = name.replace(mark, "-")
    return f"{name.strip('-')}-{head}-seed{seed}"
