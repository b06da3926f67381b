"""Folders and files that appear whole or not at all, beside which nothing stays behind.

What is being written is `.NAME.partial-PID`. A folder that is replaced is renamed to
`.NAME.replaced-PID` for the moment until the new one has its name; where a process was killed
in that moment, the next one puts it back.
"""

import contextlib
import glob
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from noah_jax import workdir as workdirs
from noah_jax.report import say

_PARTIAL, _REPLACED = "partial", "replaced"


def free(destination: str, *, folder: bool, overwrite: bool = False) -> pathlib.Path:
    """The path of a destination, if nothing would be lost there.

    Args:
      destination: what is to be made.
      folder: whether it is to be a folder; then it may be there, if it is empty.
      overwrite: whether a file, or a folder that `convert` wrote, may be there.

    Raises:
      ValueError: in one line, if something is in the way or it is not local.
    """
    if "://" in destination:
        raise ValueError(f"{destination} is not local; convert to a local path and copy it there")
    path = pathlib.Path(destination).resolve()
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first or choose another destination")
    _clean(path)
    if not path.exists() or (folder and path.is_dir() and not any(path.iterdir())):
        return path
    if not overwrite:
        raise ValueError(
            f"{destination} exists already; choose another destination, remove it or give"
            " --overwrite"
        )
    problem = _not_ours(path, folder=folder)
    if problem is not None:
        raise ValueError(
            f"{destination} {problem}; --overwrite replaces only what this program wrote: choose"
            " another destination or remove it yourself"
        )
    return path


@contextlib.contextmanager
def whole(target: pathlib.Path, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """A path beside the target that takes its place once all went well.

    Args:
      target: as `free` gives it.
      overwrite: whether it takes the place of a folder that is not empty.
    """
    partial = _beside(target, _PARTIAL)
    try:
        yield partial
        if overwrite and partial.is_dir() and target.exists():
            # A folder cannot take the place of another in one step.
            replaced = _beside(target, _REPLACED)
            target.rename(replaced)
            try:
                partial.rename(target)
            except OSError:
                replaced.rename(target)
                raise
            # Under the other name it must be whole, so it is not removed under that.
            replaced.rename(partial)
        else:
            partial.rename(target)
    finally:
        _remove(partial)


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


def _clean(target: pathlib.Path) -> None:
    """Ends what killed processes left beside a target."""
    for kind in (_PARTIAL, _REPLACED):
        for path in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if not pid.isdigit() or _runs(int(pid)):
                continue
            if kind == _PARTIAL:
                _remove(path)
            elif target.exists():
                _remove(path.rename(_beside(target, _PARTIAL)))
            else:
                path.rename(target)
                say(f"{target} is back: a conversion was killed while it replaced it")


def _runs(pid: int) -> bool:
    """Whether another process has that id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _beside(target: pathlib.Path, kind: str) -> pathlib.Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}"


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
