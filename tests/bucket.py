"""A bucket that is a local folder: what fsspec and epath take for `gs://`, with faults."""

import base64
import collections
import os
import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import google_crc32c
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from noah_jax.data.streaming import shards


class Bucket(DirFileSystem):
    """The objects of one folder; `gs://bucket/a/b` is the file `a/b` in it.

    Attributes:
      reads: The number of ranges that were read, by the name of the object.
      fail: Called with the object's name before each range is read; it may raise or sleep.
      spoil: Called with the name and the bytes that were read; returns what arrives.
    """

    protocol = "gs"
    cachable = False

    def __init__(self, folder: pathlib.Path):
        super().__init__(str(folder), LocalFileSystem())
        self.reads: collections.Counter[str] = collections.Counter()
        self.busy = 0
        self.most_busy = 0
        self._lock = threading.Lock()
        self.fail = lambda name: None
        self.spoil = lambda name, data: data

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path) if not isinstance(path, list) else path
        return path.removeprefix("gs://").removeprefix("bucket").strip("/")

    def _join(self, path):
        if isinstance(path, list):
            return [self._join(one) for one in path]
        return super()._join(self._strip_protocol(path))

    def unstrip_protocol(self, name):
        return f"gs://bucket/{self._strip_protocol(name)}"

    def _with_checksum(self, entry):
        path = pathlib.Path(self._join(entry["name"]))
        if entry["type"] == "file":
            checksum = google_crc32c.Checksum(path.read_bytes()).digest()
            entry["crc32c"] = base64.b64encode(checksum).decode()
        return entry

    def ls(self, path, detail=True, **kwargs):
        entries = super().ls(path, detail=detail)
        return [self._with_checksum(entry) for entry in entries] if detail else entries

    def info(self, path, **kwargs):
        return self._with_checksum(super().info(path) | {"name": self._strip_protocol(path)})

    def cat_file(self, path, start=None, end=None, **kwargs):
        name = os.path.basename(path)
        with self._lock:
            self.reads[name] += 1
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            self.fail(name)
            return self.spoil(name, super().cat_file(path, start=start, end=end))
        finally:
            with self._lock:
                self.busy -= 1


@contextmanager
def as_bucket(folder: pathlib.Path) -> Iterator[Bucket]:
    """Makes a folder the bucket `gs://bucket` of this process."""
    bucket = Bucket(folder)
    with pytest.MonkeyPatch.context() as patch:
        # Patched rather than registered with fsspec, because epath caches what it finds there.
        patch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: bucket)
        patch.setattr(shards, "filesystem", lambda url: bucket)
        patch.setattr("noah_jax.data.streaming.download.filesystem", lambda url: bucket)
        patch.setattr("noah_jax.data.streaming.download.WAITS", (0.0, 0.0))
        yield bucket
