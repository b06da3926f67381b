"""Names the variants of a configuration that have one head or the other."""

HEADS = ("linear", "noah")
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


def folder_name(config: str, head: str, seed: int) -> str:
    """Returns the name of the folder for one training."""
    name = config.replace(".py", "").removeprefix("configs/")
    for mark in ":/\\.":
        name = name.replace(mark, "-")
    return f"{name.strip('-')}-{head}-seed{seed}"
