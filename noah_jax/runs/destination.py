"""Checks that nothing is lost where a program is about to write."""

import json
import pathlib

from etils import epath

from noah_jax.runs import run_dir as workdirs
from noah_jax.console import say
from noah_jax.errors import InputError, one_line
from noah_jax.files import is_remote, recover


def free(destination: str, *, folder: bool, overwrite: bool = False) -> epath.Path:
    """The path of a destination, if nothing would be lost there.

    Args:
      destination: what is to be made.
      folder: whether it is to be a folder; then it may be there, if it is empty.
      overwrite: whether a local file, or folder that `convert` wrote, may be there.

    Raises:
      ValueError: in one line, if something is in the way or it cannot be written.
    """
    if is_remote(destination):
        return _free_remote(destination, folder=folder, overwrite=overwrite)
    path = pathlib.Path(destination).resolve()
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first or choose another destination")
    if recover(path):
        say(f"{path} is back: a conversion was killed while it replaced it")
    if not path.exists() or (folder and path.is_dir() and not any(path.iterdir())):
        return epath.Path(path)
    if not overwrite:
        raise InputError(
            f"{destination} exists already; choose another destination, remove it or give"
            " --overwrite"
        )
    problem = _not_ours(path, folder=folder)
    if problem is not None:
        raise InputError(
            f"{destination} {problem}; --overwrite replaces only what this program wrote: choose"
            " another destination or remove it yourself"
        )
    return epath.Path(path)


def _free_remote(destination: str, *, folder: bool, overwrite: bool) -> epath.Path:
    try:
        path = epath.Path(destination)
        taken = any(path.iterdir()) if folder and path.is_dir() else path.exists()
    except Exception as error:  # of the scheme's library, which may be missing
        reason = one_line(error, 200)
        raise InputError(
            f"{destination} cannot be written ({reason}); gs:// needs pip install gcsfs and your"
            " login, or convert to a local path and copy it there"
        ) from None
    if taken:
        instead = " (--overwrite is for local ones)" if overwrite else ""
        raise InputError(
            f"{destination} exists already; choose another destination or remove it{instead}"
        )
    return path


def _not_ours(path: pathlib.Path, *, folder: bool) -> str | None:
    """Why something must not be replaced, if so."""
    if not folder:
        return None if path.is_file() else "is a folder, a file expected"
    if not path.is_dir():
        return "is a file, a folder expected"
    model = path / workdirs.MODEL_FILE
    if not model.is_file():
        return f"holds no {workdirs.MODEL_FILE}, so it is no model's folder"
    try:
        converted = "source" in json.loads(model.read_text())
    except (ValueError, TypeError):
        return f"holds a {workdirs.MODEL_FILE} that cannot be read"
    names = {p.name for p in path.iterdir()} - {workdirs.MODEL_FILE, workdirs.CHECKPOINTS}
    if not converted or workdirs.CONFIG_FILE in names:
        return "holds a training run"
    return f"holds other things too ({', '.join(sorted(names)[:3])})" if names else None
