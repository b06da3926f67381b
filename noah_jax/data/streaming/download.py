"""Downloads a shard from a bucket, block by block, and checks it."""

import hashlib
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

import google_crc32c

from noah_jax.data.streaming.shards import Shard, filesystem
from noah_jax.errors import ReadError, UnreachableError, one_line

BLOCK = 2**24  # bytes of a request
# Seconds to wait before a request is tried again. The libraries of buckets try again themselves.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
# A shard whose checksum is wrong is downloaded once more, because the network may be to blame.
_TRIES = 2


class _Checksum(Protocol):
    def update(self, data: bytes) -> Any: ...

    def hexdigest(self) -> Any: ...


_ALGORITHMS: dict[str, Callable[[], _Checksum]] = {
    "crc32c": google_crc32c.Checksum,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
}


def download(shard: Shard, file: IO[bytes]) -> None:
    """Writes a shard into a file from its beginning.

    Args:
      shard: The shard.
      file: The file, which has the shard's length.

    Raises:
      ReadError: If the shard is gone, or its checksum is another one.
      UnreachableError: If the bucket does not give the bytes.
      OSError: If the file cannot be written.
    """
    for _ in range(_TRIES):
        file.seek(0)
        actual = _copy(shard, file)
        if shard.checksum is None or actual == shard.checksum[1]:
            return
    kind, expected = shard.checksum or ("", "")
    raise ReadError(
        f"{shard.path} arrived {_TRIES} times with the {kind} {actual}, and its bucket says"
        f" {expected}; upload it again"
    )


def _copy(shard: Shard, file: IO[bytes]) -> str:
    """Copies the blocks; returns the checksum of the kind that the bucket tells."""
    checksum = _ALGORITHMS[shard.checksum[0]]() if shard.checksum else None
    for start in range(0, shard.size, BLOCK):
        data = _read(shard, start, min(start + BLOCK, shard.size))
        if checksum is not None:
            checksum.update(data)
        file.write(data)
    if checksum is None:
        return ""
    digest = checksum.hexdigest()
    return digest.decode() if isinstance(digest, bytes) else digest


def _read(shard: Shard, start: int, end: int) -> bytes:
    system = filesystem(shard.path)
    for wait in (*WAITS, None):
        try:
            data = system.cat_file(shard.path, start=start, end=end)
            if len(data) == end - start:
                return data
            reason = f"it gave {len(data):,} of {end - start:,} bytes from byte {start:,} on"
        except FileNotFoundError as error:
            raise ReadError(f"{shard.path} is not there any more") from error
        except Exception as error:  # every file system has errors of its own
            reason = one_line(error, 200)
        if wait is not None:
            time.sleep(wait)
    raise UnreachableError(
        f"{shard.path} cannot be downloaded, tried {len(WAITS) + 1} times: {reason}; the same"
        " command goes on when its bucket can be reached"
    )
