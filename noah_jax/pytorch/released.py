"""The authors' released checkpoints: downloaded once, kept, and verified at every use.

Beside `NAME.pth` lies `NAME.pth.json` with the SHA-256 of the first download. A download that
broke off is `NAME.pth.download*.part`, which the next one goes on with.
"""

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator

from noah_jax.console import say
from noah_jax.errors import InputError, ReadError
from noah_jax.files import write_text
from noah_jax.models import list_models
from noah_jax.models.published import published
from noah_jax.pytorch.files.archive import Archive, map_file

# Where files are downloaded from, `{id}` being Google Drive's; the variable names a mirror.
URL = "https://drive.google.com/uc?id={id}"
URL_VARIABLE = "NOAH_JAX_RELEASED_URL"
# The page for a browser.
_PAGE = "https://drive.google.com/file/d/{id}/view"
_INSTALL = "pip install 'gdown>=6.5.1'"
_RETRIES = 5  # of one download, when the connection breaks
_TIMEOUT = 60  # seconds without a byte


def default_cache() -> pathlib.Path:
    """The folder for downloads, by the XDG rule."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "noah_jax" / "released"


def fetch(name: str, *, cache: str | os.PathLike | None = None, url: str | None = None) -> str:
    """The file of a released checkpoint, downloaded if it is not in the cache.

    Args:
      name: of a model whose checkpoint the authors released.
      cache: the folder for downloads; `None` is `default_cache()`. It is made.
      url: where to download, with `{id}` for Google Drive's id; `None` is the environment
        variable `NOAH_JAX_RELEASED_URL` or else Google Drive.

    Returns:
      The path of a file whose SHA-256 is that of the first download.

    Raises:
      ValueError: in one line, if there is no such checkpoint, gdown is missing, the download
        fails, or the file in the cache is not what was first downloaded.
      OSError: if the cache cannot be written.
    """
    file_id = _google_drive_id(name)
    url = (url or os.environ.get(URL_VARIABLE) or URL).replace("{id}", file_id)
    folder = default_cache() if cache is None else pathlib.Path(cache).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pth"
    with _locked(path):
        if path.exists():
            say(f"{name}: downloaded before, {path}")
        else:
            say(f"{name}: downloading {url}")
            _download(name, url, _PAGE.format(id=file_id), path)
        _verify(path, {"name": name, "url": url})
    return str(path)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _google_drive_id(name: str) -> str:
    known = published()
    if name in known:
        return known[name].google_drive_id
    reason = (
        "the authors released no checkpoint of it"
        if name in list_models()
        else "no registered model has that name"
    )
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
    raise InputError(
        f"--released {name}: {reason}; of the {len(known)} released checkpoints the nearest are"
        f" {', '.join(near)}"
    )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """One process at a time: two would append to the same unfinished download."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that downloads {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(name: str, url: str, page: str, path: pathlib.Path) -> None:
    """Makes the file at `path`, whole, or raises."""
    by_hand = f"or open {page} in a browser, save the file and convert it by its path"
    try:
        import gdown  # an optional dependency, which only this needs
    except ImportError:
        raise InputError(
            f"downloading {name} needs gdown, which is not installed: {_INSTALL}, {by_hand}"
        ) from None
    fetched = path.with_name(f"{path.name}.download")
    try:
        # With `resume` it goes on with FETCHED*.part, and has nothing to do where FETCHED is.
        gdown.download(
            url,
            str(fetched),
            quiet=not sys.stderr.isatty(),
            resume=True,
            retries=_RETRIES,
            timeout=_TIMEOUT,
        )
    except Exception as error:  # whatever an answer that gdown does not expect makes it raise
        reason = " ".join(str(error).split())[:300]
        parts = [str(part) for part in path.parent.glob(f"{fetched.name}*.part")]
        resume = f" (it goes on from {parts[0]}; remove that to begin anew)" if parts else ""
        raise InputError(
            f"{name} cannot be downloaded from {url}: {type(error).__name__}: {reason}; try"
            f" again{resume}, {by_hand}"
        ) from None
    problem = _problem(fetched)
    if problem is not None:
        # Kept, it would pass for the finished download.
        fetched.unlink()
        raise ReadError(
            f"{name}: {url} gave {problem}; it was removed, try again (Google limits how often"
            f" a file is downloaded in a day), {by_hand}"
        )
    fetched.rename(path)


def _problem(path: pathlib.Path) -> str | None:
    """What is wrong with a finished download, if it is no checkpoint or a damaged one."""
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
        return f"a damaged file ({error})"
    return None


def _verify(path: pathlib.Path, facts: dict[str, str]) -> None:
    """Compares the file with the record of the first download, or makes the record."""
    record = path.with_name(f"{path.name}.json")
    found = sha256(path)
    if not record.exists():
        facts = {**facts, "bytes": path.stat().st_size, "sha256": found}
        write_text(record, json.dumps(facts, indent=2) + "\n")
        say(f"{facts['name']}: SHA-256 {found}, recorded in {record}")
        return
    try:
        expected = json.loads(record.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ReadError(
            f"{record} is damaged, a JSON object with the key sha256 expected; remove it to record"
            f" the SHA-256 of {path} anew, which now is {found}"
        ) from None
    if found != expected:
        raise ReadError(
            f"{path} has SHA-256 {found}, {expected} expected as at the first download: it was"
            f" changed or damaged; remove it to download it again, or remove {record} if this file"
            " is the right one"
        )
