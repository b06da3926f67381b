"""Decides where a program may write, so that nothing a user made is replaced.

Writing there whole or not at all is the work of `noah_jax.files.whole`.
"""

import json
import pathlib

from etils import epath

from noah_jax.console import say
from noah_jax.errors import InputError, one_line
from noah_jax.files import is_remote, recover
from noah_jax.paths import expand_home
from noah_jax.runs.run_dir import CHECKPOINTS, CONFIG_FILE, MODEL_FILE


def free_destination(
    destination: str, *, folder: bool, overwrite: bool | None = None
) -> epath.Path:
    """Returns the path of a destination if nothing of value would be replaced there.

    Also puts back what a process was replacing there when it was killed.

    Args:
      destination: Path of the file or folder to write, local or remote.
      folder: Whether it is to be a folder. An empty folder may be there already.
      overwrite: Whether a local file may be replaced, or a local folder that the converter wrote;
        `None` for a program that never replaces anything.

    Raises:
      InputError: In one line, if something is in the way or nothing can be written there.
    """
    if is_remote(destination):
        return _free_remote(destination, folder=folder, overwrite=overwrite)
    path = pathlib.Path(expand_home(destination)).resolve()
    if not path.parent.is_dir():
        raise InputError(
            f"{path.parent} is not a folder; make it first or choose another destination"
        )
    if recover(path):
        say(f"{path} is back: a conversion was killed while it replaced it")
    if not path.exists() or (folder and path.is_dir() and not any(path.iterdir())):
        return epath.Path(path)
    if not overwrite:
        way = "or remove it" if overwrite is None else "remove it or give --overwrite"
        raise InputError(f"{destination} exists already; choose another destination, {way}")
    problem = _not_replaceable(path, folder=folder)
    if problem is not None:
        raise InputError(
            f"{destination} {problem}; --overwrite replaces only what this program wrote: choose"
            " another destination or remove it yourself"
        )
    return epath.Path(path)


def _free_remote(destination: str, *, folder: bool, overwrite: bool | None) -> epath.Path:
    try:
        path = epath.Path(destination)
        taken = any(path.iterdir()) if folder and path.is_dir() else path.exists()
    except Exception as error:
        # Every remote file system has errors of its own, and its library may be missing.
        raise InputError(
            f"{destination} cannot be written ({one_line(error, 200)}); gs:// needs pip install"
            " gcsfs and your login, or convert to a local path and copy it there"
        ) from None
    if taken:
        hint = " (--overwrite is for local ones)" if overwrite else ""
        raise InputError(
            f"{destination} exists already; choose another destination or remove it{hint}"
        )
    return path


def _not_replaceable(path: pathlib.Path, *, folder: bool) -> str | None:
    """Says why something must not be replaced; returns `None` if it may be."""
    if not folder:
        return None if path.is_file() else "is a folder, expected a file"
    if not path.is_dir():
        return "is a file, expected a folder"
    model_file = path / MODEL_FILE
    if not model_file.is_file():
        return f"holds no {MODEL_FILE}, so it is not a model's folder"
    try:
        is_converted = "source" in json.loads(model_file.read_text())
    except (ValueError, TypeError):
        return f"holds a {MODEL_FILE} that cannot be read"
    others = {p.name for p in path.iterdir()} - {MODEL_FILE, CHECKPOINTS}
    if not is_converted or CONFIG_FILE in others:
        return "holds a training run"
    return f"holds other things too ({', '.join(sorted(others)[:3])})" if others else None
