"""Keeps shards of buckets, and what was learnt of shards, in a folder of this machine.

All processes of a machine share the folder, and so do restarts. Locks of the operating system keep
them apart, which a killed process gives back:

- `locks/NN` is held by whoever downloads one of the shards that share this number;
- `locks/room` by whoever makes room for a shard;
- a shard itself, shared, by all who read it. What somebody reads is not removed.

A shard appears under its name when its last byte is on the disk and its checksum is right. While it
is being downloaded, its unfinished file has its whole length already, so that others count it.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from typing import IO

from noah_jax.data.folder_walk import warn_once
from noah_jax.data.streaming.download import download
from noah_jax.data.streaming.shards import Shard
from noah_jax.errors import InputError, WriteError
from noah_jax.files import whole
from noah_jax.paths import expand_home

DEFAULT_FOLDER = "~/.cache/noah_jax/shards"
DEFAULT_GIGABYTES = 64.0
_GIGABYTE = 10**9
_NUM_LOCKS = 256
# A shard, or with a dot one that is being downloaded. Whatever else there is, is left alone.
_OURS = re.compile(r"\.?[0-9a-f]{32}-.")


class NoRoomError(Exception):
    """Raised if the cache is full of what is in use, and the shard is not needed at once."""


class LocalShard:
    """A shard on this machine that nobody removes while somebody has this object.

    Attributes:
      path: Where it is.
    """

    def __init__(self, path: str):
        self.path = path
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY)

    def lock(self) -> bool:
        """Marks it as in use; returns false if it was removed before."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        os.utime(self._descriptor)  # When it was last opened decides what is removed first.
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        return False

    def read(self, offset: int, size: int) -> bytes:
        """Reads bytes; several threads may do so at once.

        Raises:
          OSError: If they cannot be read, or the file ends before them.
        """
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise OSError(f"the file ends {size - len(data):,} bytes too early; get it again")
        return data

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class ShardCache:
    """A folder with a bound for shards of buckets, and for the indices of shards.

    Args:
      folder: The folder; made when it is first needed.
      gigabytes: How many (of 10^9 bytes) the shards may take. Those in use may take more.
    """

    def __init__(self, folder: str | None = None, gigabytes: float = DEFAULT_GIGABYTES):
        self.folder = os.path.abspath(expand_home(folder or DEFAULT_FOLDER))
        self.capacity = int(gigabytes * _GIGABYTE)

    def index_file(self, shard: Shard) -> str:
        """Returns where the index of a shard is kept."""
        identity = shard.identity
        return os.path.join(self.folder, "index", identity[:2], f"{identity}.npz")

    def has_index(self, shard: Shard) -> bool:
        """Says whether the index of a shard is kept here."""
        return os.path.exists(self.index_file(shard))

    def open(self, shard: Shard) -> LocalShard:
        """Returns a shard on this machine; downloads it if it is in a bucket and not here yet.

        Raises:
          ReadError: If it cannot be downloaded, or its checksum is wrong.
          WriteError: If the disk is full, or the folder cannot be written.
        """
        if not shard.remote:
            return LocalShard(shard.path)
        while True:
            self._ensure(shard, urgent=True)
            with contextlib.suppress(FileNotFoundError):
                local = LocalShard(self._path(shard))
                if local.lock():
                    return local

    def fetch(self, shard: Shard) -> None:
        """Downloads a shard that will be needed soon, unless it is here.

        Raises:
          NoRoomError: If it would take the place of what is in use.
          ReadError: See `open`.
          WriteError: See `open`.
        """
        self._ensure(shard, urgent=False)

    def holds(self, shard: Shard) -> bool:
        """Says whether a shard is here."""
        return os.path.exists(self._path(shard))

    def check_space(self, size: int) -> None:
        """Checks that the disk has room for what the cache will take.

        Args:
          size: Bytes of all shards that will be read.

        Raises:
          InputError: If it has less.
        """
        existing = self.folder
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        held = sum(bytes_ for _, bytes_, _ in self._entries())
        room = shutil.disk_usage(existing).free + held
        needed = min(size, self.capacity)
        if needed > room:
            raise InputError(
                f"the disk of {self.folder} has room for {room / _GIGABYTE:,.4g} GB of shards, and"
                f" {needed / _GIGABYTE:,.4g} GB are to be kept there; free space, set"
                " data.cache_gb or choose another data.cache_dir"
            )

    def _path(self, shard: Shard) -> str:
        return os.path.join(self.folder, f"{shard.identity}-{shard.name}")

    def _ensure(self, shard: Shard, *, urgent: bool) -> None:
        if self.holds(shard):
            return
        path = self._path(shard)
        with self._locked(_lock_of(shard.identity)):
            if self.holds(shard):  # Another process or thread has fetched it meanwhile.
                return
            with whole(path) as partial:
                try:
                    with open(partial, "wb") as file:
                        self._reserve(file, shard, urgent=urgent)
                        download(shard, file)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise self._full(shard, error) from error
                    raise

    def _reserve(self, file: IO[bytes], shard: Shard, *, urgent: bool) -> None:
        """Gives an unfinished file its length once there is room for it."""
        with self._locked("room"):
            if not self._make_room(shard.size):
                if not urgent:
                    raise NoRoomError
                warn_once(
                    f"{self.folder}: the shards that are read at once take more than"
                    f" data.cache_gb={self.capacity / _GIGABYTE:g}"
                )
            file.truncate(shard.size)

    def _make_room(self, size: int) -> bool:
        """Removes the shards that were not opened for longest; returns whether that was enough."""
        entries = self._entries()
        excess = sum(bytes_ for _, bytes_, _ in entries) + size - self.capacity
        for _, bytes_, path in sorted(entries):
            if excess <= 0:
                break
            if self._remove(path):
                excess -= bytes_
        return excess <= 0

    def _entries(self) -> list[tuple[int, int, str]]:
        """Returns when each shard here was opened last, its bytes and its path."""
        if not os.path.isdir(self.folder):
            return []
        entries = []
        for entry in os.scandir(self.folder):
            if _OURS.match(entry.name) and entry.is_file():
                with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
                    status = entry.stat()
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        return entries

    def _remove(self, path: str) -> bool:
        """Removes a shard that nobody reads, or an unfinished file that nobody writes."""
        name = os.path.basename(path)
        try:
            if name.startswith("."):
                # Whoever writes it holds the lock.
                with self._locked(_lock_of(name.removeprefix(".")), wait=False):
                    os.unlink(path)
                return True
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Holds a lock of the folder, alone among all threads and processes of the machine.

        Raises:
          BlockingIOError: If another one holds it and `wait` is false.
        """
        folder = os.path.join(self.folder, "locks")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield

    def _full(self, shard: Shard, error: OSError) -> WriteError:
        return WriteError(
            f"{self.folder} is on a full disk ({os.strerror(error.errno or 0)}), and"
            f" {shard.path} does not fit; free space, lower data.cache_gb or choose another"
            " data.cache_dir"
        )


def _lock_of(identity: str) -> str:
    return f"{int(identity[:8], 16) % _NUM_LOCKS:02x}"
