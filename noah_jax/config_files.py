"""Finds configuration files: the user's own, and those that come with the package.

An installed package carries the files of the repository's `configs/` as `noah_jax/configs/`. In a
clone of the repository they lie beside the package.
"""

import pathlib
from collections.abc import Sequence

from noah_jax.errors import UsageError, near_matches
from noah_jax.paths import expand_home


def config_folder() -> pathlib.Path:
    """Returns the folder with the configuration files that come with the package."""
    package = pathlib.Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(config: str) -> str:
    """Finds the file of a configuration.

    Args:
      config: `FILE` or `FILE:VARIANT`. A file that exists is taken as it is; otherwise `FILE`, with
        or without `configs/` before it, is one of the files that come with the package.

    Returns:
      The path of the file, with `:VARIANT` if there is one.

    Raises:
      UsageError: If there is no such file; names those that are called alike.
    """
    file, colon, variant = config.partition(":")
    path = pathlib.Path(expand_home(file))
    if not path.is_file():
        folder = config_folder()
        packaged = folder / path.name
        if path.parent not in (pathlib.Path(), pathlib.Path("configs")) or not packaged.is_file():
            names = sorted(p.name for p in folder.glob("*.py"))
            near = near_matches(path.name, names, 3) or names
            raise UsageError(
                f"the configuration file cannot be read: there is no {file}, and the package has"
                f" {', '.join(near)}"
            )
        path = packaged
    return f"{path}{colon}{variant}"


def with_found_config(argv: Sequence[str]) -> list[str]:
    """Returns a command line in which the value of `--config` is the path of a file that exists.

    Raises:
      UsageError: If there is no such file.
    """
    words = list(argv)
    for position, word in enumerate(words):
        if word.startswith("--config="):
            words[position] = "--config=" + find_config(word.removeprefix("--config="))
        elif word == "--config" and position + 1 < len(words):
            words[position + 1] = find_config(words[position + 1])
    return words
