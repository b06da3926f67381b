"""The folders in which downloads are kept, and the lock under which one process fills them."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from noah_jax.console import note
from noah_jax.errors import WriteError
from noah_jax.paths import expand_home


def default_folder(kind: str) -> pathlib.Path:
    """Returns the folder for one kind of downloads, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(expand_home(base)) / "noah_jax" / kind


@contextlib.contextmanager
def filling(path: pathlib.Path, advice: str) -> Iterator[None]:
    """Makes the folder of a download and admits one process at a time.

    Two processes would append to the same partial download.

    Args:
      path: The file that is to be downloaded.
      advice: What to do if the folder cannot be written.

    Raises:
      WriteError: If the folder cannot be written.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise WriteError(
            f"the cache {folder} cannot be written ({error.strerror}); {advice}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another process that downloads {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
