"""Reads the folder of golden vectors."""

import fnmatch
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from noah_jax.errors import InputError, MissingError, ReadError


def read_json(folder: str, name: str) -> Any:
    """Reads the JSON file `FOLDER/NAME`, which is unpacked if its name ends in `.gz`.

    Raises:
      MissingError: If there is no such file.
      ReadError: If the file cannot be read.
    """
    path = _path(folder, name)
    try:
        with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
            return json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise ReadError(f"{path} is corrupt ({error}); copy it again") from error


def read_npz(folder: str, name: str) -> np.lib.npyio.NpzFile:
    """Opens `FOLDER/NAME`, arrays by key, each of which is read on demand.

    Raises:
      MissingError: If there is no such file.
      ReadError: If the file cannot be read.
    """
    path = _path(folder, name)
    try:
        return np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise ReadError(f"{path} is corrupt ({error}); copy it again") from error


def arrays_below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Reads the arrays whose keys start with `prefix/`; their new keys lack it."""
    start = f"{prefix}/"
    return {key.removeprefix(start): arrays[key] for key in arrays if key.startswith(start)}


def read_salt(folder: str) -> str:
    """Reads the salt that the golden vectors were computed with."""
    return read_json(folder, "golden.json")["salt"]


def possible_salts(salt: str) -> tuple[str, ...]:
    """Returns what may have salted the images, or the head's weights: the salt, or nothing.

    The description of the golden vectors says that a model's weights are salted but is silent
    about these. A wrong salt gives another input altogether and errors of order one, so taking
    the better of the two cannot hide a difference.
    """
    return (salt, "") if salt else ("",)


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Returns the names that match a shell-style pattern, sorted.

    Raises:
      InputError: If there is none.
    """
    names = sorted(names)
    matches = fnmatch.filter(names, pattern)
    if not matches:
        raise InputError(
            f"no golden case matches {pattern!r}; there are {len(names)}, such as"
            f" {', '.join(names[:3])}"
        )
    return matches


def _path(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise MissingError(f"{path} is missing; --golden must be the folder of the golden vectors")
    return path
