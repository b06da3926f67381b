"""Reads text with any byte order mark; writes files and folders whole or not at all.

Both are local or remote (`gs://`).

What is being written is `.NAME.partial-PID`, beside the target. A local folder cannot take the
place of another one in a single step: the old one is `.NAME.replaced-PID` for the moment until the
new one has its name. Where a process was killed, the next writer of the same target puts the old
folder back (`recover`) and removes what was unfinished.
"""

import codecs
import contextlib
import errno
import glob
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from noah_jax.errors import (
    NoahError,
    ReadError,
    WriteError,
    machine_advice,
    one_line,
    printable,
    shown,
)
from noah_jax.interrupts import undoing

_PARTIAL, _REPLACED = "partial", "replaced"
_MEGABYTE = 2**20
_REMOVALS = 100  # A folder is not empty any more if a file was made in it meanwhile.
# Byte order marks, longer ones first, and what Python calls text that starts with one.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ADVICE = {
    errno.ENOENT: "make the folder above it first or choose another place",
    errno.ENOTEMPTY: "something else was written there meanwhile: choose another name",
    errno.EEXIST: "something else was written there meanwhile: choose another name",
}


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL such as `gs://bucket/folder`, not a path of this machine."""
    return "://" in os.fspath(path)


def read_text(path: str | os.PathLike[str], *, any_bytes: bool = False) -> str:
    """Reads a text file, local or remote, in UTF-8 or with a byte order mark.

    Args:
      path: The file.
      any_bytes: Whether bytes that are not UTF-8 are kept as in file names (`surrogateescape`).

    Returns:
      The text without the byte order mark; line ends stay as they are.

    Raises:
      ReadError: If the file cannot be read or is no such text.
    """
    name = os.fspath(path)
    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise ReadError(f"{name} cannot be read: {error.strerror or error}") from error
    encoding = next((known for mark, known in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:_MEGABYTE]:
        raise ReadError(f"{name} is not text in UTF-8; save it as UTF-8")
    try:
        return data.decode(encoding, "surrogateescape" if any_bytes else "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ReadError(
            f"{name} is not text in {encoding.upper()} (line {line}: {error.reason}); save it as"
            " UTF-8"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, whole or not at all.

    Args:
      path: The file, local or remote. An existing file is replaced.
      text: The contents, written as UTF-8.

    Raises:
      WriteError: If the file cannot be written.
    """
    write_bytes(path, printable(text).encode("utf-8", "backslashreplace"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a binary file, whole or not at all; see `write_text`."""
    with whole(path) as partial:
        partial.write_bytes(data)


def make_folder(path: str | os.PathLike[str]) -> epath.Path:
    """Makes a folder and those above it, unless it exists, and returns it.

    Args:
      path: The folder, local or remote.

    Raises:
      WriteError: If it cannot be made.
    """
    folder = epath.Path(path)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def whole(
    target: str | os.PathLike[str], *, overwrite: bool = False, last: str | None = None
) -> Iterator[pathlib.Path]:
    """Gives a local path for a file or folder that takes the target's place once all went well.

    If the body of the `with` statement raises, the target stays as it was. It is also whole if the
    process is killed at any moment: a local target changes by renaming, after its bytes are on
    the disk. A remote folder is not there at once: its files are copied one after another.

        with whole("runs/converted") as folder:
            folder.mkdir()
            (folder / "model.json").write_text("{}")

    Args:
      target: What is to appear, local or remote; the folder above a local one must exist. A file
        replaces an existing file, and a folder an empty folder.
      overwrite: Whether a local folder replaces a folder that is not empty.
      last: The name of the file in a remote folder that is copied last, so that a reader who finds
        it finds the others too.

    Yields:
      A path where nothing is yet. The body makes a file or a folder there.

    Raises:
      WriteError: If the target cannot be written. Errors of the operating system inside the body
        become a `WriteError` unless they name another path.
    """
    if is_remote(target):
        remote = epath.Path(target)
        with tempfile.TemporaryDirectory() as folder:
            local = pathlib.Path(folder) / remote.name
            with _explained(target, local), undoing(lambda: _remove_for_good(pathlib.Path(folder))):
                yield local
            if local.is_dir():
                copy_files(local, remote, last=last)
            else:
                _upload(local, remote)
        return
    path = pathlib.Path(target)
    partial = _beside(path, _PARTIAL)
    with _explained(path, partial):
        recover(path)
        try:
            with undoing(lambda: _remove_for_good(partial)):
                yield partial
                _flush(partial)
            if overwrite and partial.is_dir() and path.exists():
                _replace_folder(path, partial)
            else:
                partial.replace(path)
        finally:
            _remove(partial)


def recover(target: str | os.PathLike[str]) -> bool:
    """Ends what killed writers of a local target left beside it.

    Args:
      target: The file or folder. What processes write that are still running is left alone.

    Returns:
      Whether a folder is back that a writer was replacing when it was killed.
    """
    path = pathlib.Path(target)
    back = False
    for kind in (_PARTIAL, _REPLACED):
        for left in path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"):
            pid = left.name.rpartition("-")[2]
            if not pid.isdigit() or _is_running(int(pid)):
                continue
            if kind == _PARTIAL:
                _remove(left)
            elif path.exists():
                # Under the name of a replaced folder it must stay whole: a kill while it is
                # removed would put a half-removed folder back.
                _remove(left.rename(_beside(path, _PARTIAL)))
            else:
                left.rename(path)
                back = True
    return back


def copy_files(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, last: str | None = None
) -> None:
    """Copies the files in a folder and its subfolders into another folder, local or remote.

    Args:
      source: The folder to copy.
      target: The other folder; made if it does not exist. Files of the same names are replaced.
      last: The name of the file that is copied after all others.

    Raises:
      WriteError: If a file cannot be written.
    """
    folder, copy = epath.Path(source), epath.Path(target)
    for path in sorted(_files_below(folder), key=lambda path: path.name == last):
        _upload(path, copy / path.relative_to(folder))


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _upload(source: os.PathLike[str], target: epath.Path) -> None:
    """Copies one file; makes the folder above it."""
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with epath.Path(source).open("rb") as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy, _MEGABYTE)


@contextlib.contextmanager
def _writing(target: epath.Path) -> Iterator[None]:
    """Turns errors of writing a target, local or remote, into a `WriteError`."""
    try:
        yield
    except OSError as error:
        raise _write_error(target, error) from error
    except Exception as error:
        # Every remote file system has errors of its own, and its library may be missing.
        if not is_remote(target):
            raise
        raise _write_error(target, error) from error


def _replace_folder(target: pathlib.Path, partial: pathlib.Path) -> None:
    replaced = _beside(target, _REPLACED)
    target.rename(replaced)
    try:
        partial.rename(target)
    except OSError:
        replaced.rename(target)
        raise
    # Renamed before it is removed, for the reason given in `recover`.
    replaced.rename(partial)


@contextlib.contextmanager
def _explained(target: str | os.PathLike[str], partial: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing `partial` into a `WriteError` about `target`."""
    try:
        yield
    except NoahError:
        raise
    except OSError as error:
        written = [pathlib.PurePath(target), pathlib.PurePath(partial)]
        named = [name for name in (error.filename, error.filename2) if name is not None]
        if named and not any(
            pathlib.PurePath(os.fsdecode(n)).is_relative_to(w) for n in named for w in written
        ):
            raise  # the error is about another file, which the body reads
        raise _write_error(target, error) from error


def _write_error(target: str | os.PathLike[str], error: Exception) -> WriteError:
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else one_line(error, 200)
    advice = _ADVICE.get(number or 0) or machine_advice(number)
    if is_remote(target):
        advice = (
            "gs:// needs pip install gcsfs and your login; or write to a local path and copy it"
            " there"
        )
    name = shown(os.fspath(target))
    return WriteError(f"{name} cannot be written ({reason}); {advice}")


def _flush(path: pathlib.Path) -> None:
    """Waits until the bytes of a file, or of all files in a folder, are on the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _is_running(pid: int) -> bool:
    """Returns whether another process has that id."""
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_for_good(path: pathlib.Path) -> None:
    """Removes what another thread may still be writing."""
    for _ in range(_REMOVALS):
        with contextlib.suppress(OSError):
            _remove(path)
            return
