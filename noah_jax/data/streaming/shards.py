"""Finds shard files by patterns, local or remote, and what tells one version of them from another.

Remote files are listed through fsspec, which `epath` uses too: a bucket's listing has the size of
each object and, where the bucket knows it, a checksum.
"""

import base64
import binascii
import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noah_jax.errors import InputError, ReadError, near_matches, one_line
from noah_jax.files import is_remote
from noah_jax.paths import expand_home

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000  # A range with more is a slip of the pen.


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file that holds many images.

    Attributes:
      path: Path or URL.
      size: Bytes.
      checksum: Name of the algorithm (`crc32c` or `md5`) and the digest in hexadecimal letters;
        `None` if the file system does not tell it.
      version: What changes if the file does, besides its size.
    """

    path: str
    size: int
    checksum: tuple[str, str] | None
    version: str

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return os.path.basename(self.path)

    @property
    def remote(self) -> bool:
        """Whether the file is on another machine."""
        return is_remote(self.path)

    @property
    def identity(self) -> str:
        """32 letters that stand for this version of this file."""
        words = f"{self.path}\n{self.size}\n{self.version}"
        return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def is_pattern(text: str) -> bool:
    """Says whether a text names shards, not a folder: `a-{000..123}.tar`, `a-*.tar`, `a.tar`."""
    return text.endswith(".tar") or any(letter in text for letter in "{*?[") or "::" in text


def expand_braces(pattern: str) -> Iterator[str]:
    """Yields what a pattern with `{000..123}` or `{a,b}` stands for, as a shell does.

    Raises:
      InputError: If a range is empty or has more than a million numbers.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for word in _words(match[1], pattern):
        yield from expand_braces(before + word + after)


def _words(inner: str, pattern: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        yield from inner.split(",")
        return
    first, last = numbers.groups()
    if not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise InputError(f"{{{inner}}} in {pattern} must go from a number to a higher one")
    for number in range(int(first), int(last) + 1):
        yield str(number).zfill(len(first))


def find_shards(pattern: str) -> list[Shard]:
    """Finds the files that a pattern names, in its order.

    Args:
      pattern: Paths or URLs with `{000..123}`, `{a,b}` and, as in a shell, `*`, `?` and `[...]`,
        whose matches are sorted. `::` stands between several patterns.

    Raises:
      InputError: If a pattern matches nothing, or a file is missing.
      ReadError: If a bucket cannot be listed.
    """
    paths: list[str] = []
    for part in pattern.split("::"):
        for path in map(expand_home, expand_braces(part)):
            if any(letter in path for letter in "*?["):
                matches = _glob(path)
                if not matches:
                    raise InputError(f"no file matches {path}")
                paths += matches
            else:
                paths.append(path)
    return shards_at(paths)


def shards_at(paths: Sequence[str | os.PathLike[str]]) -> list[Shard]:
    """Returns the shards at paths or URLs, each once; a folder of many is listed at once.

    Args:
      paths: The paths.

    Raises:
      InputError: If one is missing.
      ReadError: If a bucket cannot be listed.
    """
    names = list(dict.fromkeys(os.fspath(path) for path in paths))
    found = _look_up(names)
    return [found[name] for name in names]


def list_shards(folder: str, suffix: str) -> list[Shard]:
    """Lists the files of a folder whose names end with a suffix, sorted; none if there is none.

    Raises:
      ReadError: If a bucket cannot be listed.
    """
    if is_remote(folder):
        found = _list_remote(folder).values()
        return sorted((s for s in found if s.name.endswith(suffix)), key=lambda s: s.path)
    pattern = os.path.join(glob.escape(folder), f"*{glob.escape(suffix)}")
    return [_local(path) for path in sorted(glob.glob(pattern))]


def filesystem(url: str) -> Any:
    """Returns fsspec's file system of a URL.

    Raises:
      InputError: If there is none for its scheme.
      ImportError: If its package is missing.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except ValueError as error:
        raise InputError(f"{url} cannot be opened: {one_line(error, 200)}") from error


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))
    system = filesystem(pattern)
    try:
        names = system.glob(pattern)
    except Exception as error:  # every file system has errors of its own
        raise ReadError(f"{pattern} cannot be listed: {one_line(error, 200)}") from error
    return sorted(system.unstrip_protocol(name) for name in names)


def _look_up(paths: Sequence[str]) -> dict[str, Shard]:
    """Returns the shards at paths; a folder of many is listed at once."""
    shards: dict[str, Shard] = {}
    folders: dict[str, list[str]] = {}
    for path in paths:
        if is_remote(path):
            folders.setdefault(path.rpartition("/")[0], []).append(path)
        elif os.path.isfile(path):
            shards[path] = _local(path)
        else:
            raise InputError(f"the shard {path} does not exist{_nearest(path)}")
    for folder, wanted in folders.items():
        listed = _list_remote(folder) if len(wanted) > 1 else {}
        for path in wanted:
            shards[path] = listed[path] if path in listed else _ask(path)
    return shards


def _ask(url: str) -> Shard:
    try:
        return _remote(url, filesystem(url).info(url))
    except FileNotFoundError as error:
        raise InputError(f"the shard {url} does not exist") from error
    except (ImportError, InputError):
        raise
    except Exception as error:
        raise ReadError(f"{url} cannot be found: {one_line(error, 200)}") from error


def _list_remote(folder: str) -> dict[str, Shard]:
    system = filesystem(folder)
    try:
        entries = system.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise ReadError(f"{folder} cannot be listed: {one_line(error, 200)}") from error
    urls = [(system.unstrip_protocol(entry["name"]), entry) for entry in entries]
    return {url: _remote(url, entry) for url, entry in urls if entry.get("type") == "file"}


def _local(path: str) -> Shard:
    status = os.stat(path)
    return Shard(os.path.abspath(path), status.st_size, None, str(status.st_mtime_ns))


def _remote(url: str, info: Mapping[str, Any]) -> Shard:
    checksum = _checksum(info)
    version = str(info.get("generation") or info.get("etag") or info.get("ETag") or "")
    return Shard(url, int(info["size"]), checksum, version or str(checksum or ""))


def _checksum(info: Mapping[str, Any]) -> tuple[str, str] | None:
    """Finds a checksum in what Google's buckets say of an object (base64) or S3 (an MD5 ETag)."""
    for kind, key in (("crc32c", "crc32c"), ("md5", "md5Hash")):
        try:
            if info.get(key):
                return kind, base64.b64decode(info[key], validate=True).hex()
        except (TypeError, ValueError, binascii.Error):
            continue
    # The ETag of an object that was uploaded in parts has a dash, and is no MD5.
    etag = str(info.get("ETag", "")).strip('"')
    return ("md5", etag) if re.fullmatch("[0-9a-f]{32}", etag) else None


def _nearest(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"; there is no folder {folder}"
    near = near_matches(name, os.listdir(folder or "."))
    return f"; did you mean {os.path.join(folder, near[0])}?" if near else ""
