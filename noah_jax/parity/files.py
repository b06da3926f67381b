"""The folder of golden vectors."""

import gzip
import json
import os
from typing import Any

import numpy as np

from noah_jax.errors import InputError


class GoldenError(InputError):
    """A folder of golden vectors that cannot be used; the message is one line."""


def read_json(folder: str, name: str) -> Any:
    """`FOLDER/NAME`, a JSON file, unpacked where the name ends in `.gz`."""
    path = _path(folder, name)
    try:
        with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
            return json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise GoldenError(f"{path} is damaged ({error}); copy it again") from error


def read_npz(folder: str, name: str) -> np.lib.npyio.NpzFile:
    """`FOLDER/NAME`, arrays by key, read when asked for."""
    path = _path(folder, name)
    try:
        return np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise GoldenError(f"{path} is damaged ({error}); copy it again") from error


def read_salt(folder: str) -> str:
    """What the vectors were salted with."""
    return read_json(folder, "golden.json")["salt"]


def readings(salt: str) -> tuple[str, ...]:
    """What may have salted the images, or the head's weights: the salt, or nothing.

    The vectors' description salts a model's weights but is silent on these. A wrong reading
    gives another input altogether and errors of order one, so taking the better of the two
    cannot hide a difference.
    """
    return (salt, "") if salt else ("",)


def _path(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise GoldenError(f"{path} is missing; --golden must be the folder of the golden vectors")
    return path
