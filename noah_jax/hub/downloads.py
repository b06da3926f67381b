"""Downloads files from the web once; the checksum in a file's name says whether it is whole.

torchvision publishes its weights so: `resnet50-0676ba61.pth` has the first digits of its SHA-256 in
its name. An interrupted download is `NAME.part`, and the next attempt continues it.
"""

import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request

from noah_jax.console import working
from noah_jax.errors import InputError, ReadError, one_line
from noah_jax.hub.cache import default_folder, filling

_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+\Z")
_TIMEOUT = 60  # seconds without a byte, after which a connection counts as broken
_CHUNK = 2**20
_SITES = ("https://huggingface.co/", "http://huggingface.co/")


def fetch_url(url: str) -> str:
    """Returns a file of the web; downloads it if it is not in `~/.cache/noah_jax/downloads`.

    Args:
      url: Its address. The file's name ends in a dash and the first digits of its SHA-256.

    Returns:
      The path of the complete file.

    Raises:
      InputError: If the name has no checksum, or the file cannot be downloaded.
      ReadError: If what came has another checksum.
      WriteError: If the cache cannot be written.
    """
    if url.startswith(_SITES):
        raise InputError(f"{url} is a page; write hf://USER/NAME for a repository of Hugging Face")
    name = os.path.basename(urllib.parse.urlsplit(url).path)
    checksum = _CHECKSUM.search(name)
    if checksum is None:
        raise InputError(
            f"{url}: the file's name does not end in its checksum, as in resnet50-0676ba61.pth, so"
            " nothing would say whether it is whole; download it yourself and give its path"
        )
    path = default_folder("downloads") / name
    if path.exists():
        return str(path)
    with filling(path, "set XDG_CACHE_HOME to another folder"):
        if not path.exists():  # another process may have brought it
            part = path.with_name(f"{name}.part")
            _receive(url, part)
            _check(url, part, checksum[1])
            part.rename(path)
    return str(path)


def _receive(url: str, part: pathlib.Path) -> None:
    """Downloads a file, or what it still lacks."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "noah_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            start = start if response.status == 206 else 0
            length = response.headers["Content-Length"]
            total = None if length is None else start + int(length)
            _copy(response, part, start, total, url)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing, or the file there is another one
            return
        reason = f"the server answers {error.code} {error.reason}"
        raise InputError(f"{url} cannot be downloaded: {reason}; check the address") from None
    except (OSError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", error), 200)
        raise InputError(f"{url} cannot be downloaded: {reason}; {_again(part)}") from None


def _copy(
    response: http.client.HTTPResponse,
    part: pathlib.Path,
    start: int,
    total: int | None,
    url: str,
) -> None:
    megabytes = None if total is None else -(-total // _CHUNK)
    with (
        working(f"downloading {url}", megabytes, "MB", done=start // _CHUNK) as work,
        part.open("ab" if start else "wb") as file,
    ):
        while data := response.read(_CHUNK):
            file.write(data)
            work.advance()
        size = file.tell()
    if total is not None and size < total:
        raise InputError(f"{url} broke off after {size} of {total} bytes; {_again(part)}")


def _again(part: pathlib.Path) -> str:
    return f"try again, which continues {part}" if part.exists() else "try again"


def _check(url: str, part: pathlib.Path, expected: str) -> None:
    """Removes a file and raises a ReadError unless it has a checksum."""
    with part.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        part.unlink()
        raise ReadError(
            f"{url} gave a file of SHA-256 {actual}, its name says {expected}...; it was removed,"
            " try again"
        )
