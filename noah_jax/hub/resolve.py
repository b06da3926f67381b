"""Turns the name of a checkpoint into a path on this machine; every program's goes through here."""

import os

from noah_jax.hub.downloads import fetch_url
from noah_jax.hub.hugging_face import MODEL, WEIGHTS, fetch_repository
from noah_jax.hub.names import HUGGING_FACE, RELEASED, is_url, parse_hub_name
from noah_jax.hub.released import fetch


def local_checkpoint(name: str) -> str:
    """Returns the file or folder of a checkpoint; downloads it if it is elsewhere.

    Args:
      name: `hf://USER/NAME[@REVISION][/FILE]` for a repository of Hugging Face,
        `released://NAME` for a checkpoint of the authors, an address `https://.../NAME-CHECKSUM.pth`,
        or a path, local or `gs://`.

    Returns:
      A path that is there, if it was not one before. A local folder that is laid out as a
      repository gives the file with its weights.

    Raises:
      InputError, MissingError, MissingPackageError, WriteError: If it cannot be downloaded, in one
        line.
    """
    if name.startswith(HUGGING_FACE):
        return fetch_repository(parse_hub_name(name))
    if name.startswith(RELEASED):
        return fetch(name.removeprefix(RELEASED))
    if is_url(name):
        return fetch_url(name)
    return _weights_in(name)


def _weights_in(path: str) -> str:
    """Returns the weights in a folder that is laid out as a repository; another path as it is."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, MODEL)):
        files = (os.path.join(path, file) for file in WEIGHTS)
        return next((file for file in files if os.path.isfile(file)), path)
    return path
