"""Downloads the authors' released checkpoints once, and verifies them at every use.

`NAME.pth.json` beside `NAME.pth` has the SHA-256 of the first download. An interrupted download is
`NAME.pth.download*.part`, and the next attempt continues it.
"""

import hashlib
import json
import os
import pathlib
import re
import sys

from noah_jax.console import note
from noah_jax.errors import InputError, MissingPackageError, ReadError, near_matches, one_line
from noah_jax.files import write_text
from noah_jax.hub.cache import default_folder, filling
from noah_jax.models import list_models
from noah_jax.models.published import published
from noah_jax.paths import expand_home
from noah_jax.pytorch.files.archive import Archive, map_file

# Address of a file with Google Drive's `{id}`; the environment variable names a mirror.
URL = "https://drive.google.com/uc?id={id}"
URL_VARIABLE = "NOAH_JAX_RELEASED_URL"
# The page for a user's browser.
_PAGE = "https://drive.google.com/file/d/{id}/view"
_INSTALL = "pip install 'gdown>=6.3'"
_RETRIES = 5  # attempts to continue one download after the connection breaks
_TIMEOUT = 60  # seconds without a byte, after which a connection counts as broken


def default_cache() -> pathlib.Path:
    """Returns the folder for downloads."""
    return default_folder("released")


def fetch(name: str, *, cache: str | os.PathLike | None = None, url: str | None = None) -> str:
    """Returns the file of a released checkpoint; downloads it if it is not in the cache.

    Args:
      name: Name of a model whose checkpoint the authors released.
      cache: Folder for downloads, created if needed; `None` is `default_cache()`.
      url: Address to download from, with `{id}` for Google Drive's id; `None` is the environment
        variable `NOAH_JAX_RELEASED_URL` or, without it, Google Drive.

    Returns:
      The path of a file whose SHA-256 is that of the first download.

    Raises:
      InputError: If there is no such checkpoint, the download fails, or the file in the cache is
        not the one first downloaded.
      MissingPackageError: If the file has to be downloaded and gdown is not installed.
      WriteError: If the cache cannot be written.
    """
    file_id = _google_drive_id(name)
    url = (url or os.environ.get(URL_VARIABLE) or URL).replace("{id}", file_id)
    folder = default_cache() if cache is None else pathlib.Path(expand_home(os.fspath(cache)))
    path = folder / f"{name}.pth"
    with filling(path, "choose another folder with --cache"):
        if path.exists():
            note(f"{name}: downloaded before, {path}")
        else:
            note(f"{name}: downloading {url}")
            _download(name, url, _PAGE.format(id=file_id), path)
        _verify(path, name, url)
    return str(path)


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _google_drive_id(name: str) -> str:
    releases = published()
    if name in releases:
        return releases[name].google_drive_id
    reason = (
        "the authors released no checkpoint of this model"
        if name in list_models()
        else "no registered model has this name"
    )
    similar = near_matches(name, releases, 3) or sorted(releases)[:3]
    raise InputError(
        f"there is no released {name}: {reason}; the nearest of the {len(releases)} released ones"
        f" are {', '.join(similar)}"
    )


def _download(name: str, url: str, page: str, path: pathlib.Path) -> None:
    """Downloads a complete file to `path`, or raises."""
    by_hand = f"or open {page} in a browser, save the file and convert it by its path"
    try:
        import gdown  # an optional dependency that only this function needs
    except ImportError:
        raise MissingPackageError(
            f"downloading {name} needs gdown, which is not installed: {_INSTALL}, {by_hand}"
        ) from None
    fetched = path.with_name(f"{path.name}.download")
    try:
        # With `resume`, gdown continues FETCHED*.part, and does nothing if FETCHED exists.
        gdown.download(
            url,
            str(fetched),
            quiet=not sys.stderr.isatty(),
            resume=True,
            retries=_RETRIES,
            timeout=_TIMEOUT,
        )
    except Exception as error:  # gdown raises anything when it gets an answer it does not expect
        reason = one_line(error, 300)
        parts = [str(part) for part in path.parent.glob(f"{fetched.name}*.part")]
        resume = f" (it continues {parts[0]}; remove that to start again)" if parts else ""
        raise InputError(
            f"{name} cannot be downloaded from {url}: {type(error).__name__}: {reason}; try"
            f" again{resume}, {by_hand}"
        ) from None
    problem = _problem(fetched)
    if problem is not None:
        # If it stayed, the next attempt would take it for the finished download.
        fetched.unlink()
        raise ReadError(
            f"{name}: {url} gave {problem}; it was removed, try again (Google limits how often"
            f" a file is downloaded in a day), {by_hand}"
        )
    fetched.rename(path)


def _problem(path: pathlib.Path) -> str | None:
    """Says what is wrong with a finished download; returns `None` if nothing is."""
    with path.open("rb") as file:
        start = file.read(2**16)
    if start.lstrip()[:1] == b"<":
        title = re.search(rb"<title>(.*?)</title>", start, re.DOTALL | re.IGNORECASE)
        text = f" ({' '.join(title[1].decode(errors='replace').split())[:80]!r})" if title else ""
        return f"a web page{text}, not a checkpoint"
    try:
        data = map_file(path)
        if start.startswith(b"PK"):
            archive = Archive(path, data)
            for record in archive.records.values():
                archive.read(record)
    except ReadError as error:
        return f"a corrupt file ({error})"
    return None


def _verify(path: pathlib.Path, name: str, url: str) -> None:
    """Compares a file with the record of its first download, or writes the record."""
    record = path.with_name(f"{path.name}.json")
    actual = sha256(path)
    if not record.exists():
        metadata = {"name": name, "url": url, "bytes": path.stat().st_size, "sha256": actual}
        write_text(record, json.dumps(metadata, indent=2) + "\n")
        note(f"{name}: SHA-256 {actual}, recorded in {record}")
        return
    try:
        expected = json.loads(record.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ReadError(
            f"{record} is corrupt, expected a JSON object with the key sha256; remove it to record"
            f" the SHA-256 of {path} again, which now is {actual}"
        ) from None
    if actual != expected:
        raise ReadError(
            f"{path} has SHA-256 {actual}, but {expected} at its first download: it was changed or"
            f" corrupted; remove it to download it again, or remove {record} if this file is the"
            " right one"
        )
