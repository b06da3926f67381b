"""Folders and files that appear whole or not at all, beside which nothing stays behind.

What is being written is `.NAME.partial-PID`. A folder that is replaced is renamed to
`.NAME.replaced-PID` for the moment until the new one has its name; where a process was killed
in that moment, the next one puts it back. To a `gs://` destination everything is copied from a
local folder, the file that makes it a model's folder last.
"""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from noah_jax.runs import run_dir as workdirs
from noah_jax.console import say
from noah_jax.errors import InputError

_PARTIAL, _REPLACED = "partial", "replaced"


def free(destination: str, *, folder: bool, overwrite: bool = False) -> epath.Path:
    """The path of a destination, if nothing would be lost there.

    Args:
      destination: what is to be made.
      folder: whether it is to be a folder; then it may be there, if it is empty.
      overwrite: whether a local file, or folder that `convert` wrote, may be there.

    Raises:
      ValueError: in one line, if something is in the way or it cannot be written.
    """
    if _is_remote(destination):
        return _free_remote(destination, folder=folder, overwrite=overwrite)
    path = pathlib.Path(destination).resolve()
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first or choose another destination")
    _clean(path)
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


@contextlib.contextmanager
def whole(target: epath.Path, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """A local path for what takes the target's place once all went well.

    Args:
      target: as `free` gives it.
      overwrite: whether it takes the place of a folder that is not empty.
    """
    if _is_remote(target):
        with tempfile.TemporaryDirectory() as folder:
            local = pathlib.Path(folder) / target.name
            yield local
            _copy(local, target)
        return
    target = pathlib.Path(target)
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


def _is_remote(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


def _free_remote(destination: str, *, folder: bool, overwrite: bool) -> epath.Path:
    try:
        path = epath.Path(destination)
        taken = any(path.iterdir()) if folder and path.is_dir() else path.exists()
    except Exception as error:  # of the scheme's library, which may be missing
        reason = " ".join(str(error).split())[:200]
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


def _copy(local: pathlib.Path, target: epath.Path) -> None:
    """Copies a file, or a folder such that it counts as a model's only when all is there."""
    found = [path for path in local.rglob("*") if path.is_file()] if local.is_dir() else [local]
    for path in sorted(found, key=lambda path: path.name == workdirs.MODEL_FILE):
        to = target / path.relative_to(local)
        to.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, to.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**20)


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
