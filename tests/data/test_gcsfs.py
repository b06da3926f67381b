"""Buckets as gcsfs shows them, from a server on this machine; skipped where gcsfs is missing."""

import base64
import http.server
import json
import pathlib
import threading
import urllib.parse

import google_crc32c
import pytest

from noah_jax.data.sources import open_sources
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.shards import find_shards
from tests.shards import write_mixed_shards

gcsfs = pytest.importorskip("gcsfs")


class _Server(http.server.BaseHTTPRequestHandler):
    """The part of Google's JSON API that reads objects, https://cloud.google.com/storage/docs."""

    root: pathlib.Path

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, rest = url.path.partition("/b/bucket/o")
        name = urllib.parse.unquote(rest.strip("/"))
        if url.path.rstrip("/").endswith("/b/bucket"):
            self._send(200, {"kind": "storage#bucket", "name": "bucket"})
        elif not name:
            self._send(200, self._list(query.get("prefix", ""), query.get("delimiter")))
        elif not (self.root / name).is_file():
            self._send(404, {"error": {"code": 404, "message": "No such object"}})
        elif query.get("alt") == "media" or url.path.startswith("/download"):
            self._send_bytes((self.root / name).read_bytes())
        else:
            self._send(200, self._object(name))

    def _object(self, name):
        data = (self.root / name).read_bytes()
        checksum = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        about = {"name": name, "bucket": "bucket", "size": str(len(data)), "crc32c": checksum}
        return about | {"kind": "storage#object", "generation": "7"}

    def _list(self, prefix, delimiter):
        names = [p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()]
        names = sorted(name for name in names if name.startswith(prefix))
        if delimiter is None:
            return {"items": [self._object(name) for name in names]}
        inner = {name for name in names if delimiter in name[len(prefix) :]}
        ends = {prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter for name in inner}
        items = [self._object(name) for name in names if name not in inner]
        return {"items": items, "prefixes": sorted(ends)}

    def _send_bytes(self, data):
        first, last = 0, len(data) - 1
        if "Range" in self.headers:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.send_response(206 if "Range" in self.headers else 200)
        part = data[first : last + 1]
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def _send(self, code, content):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def bucket(tmp_path, class_folders, monkeypatch):
    write_mixed_shards(tmp_path / "bucket", class_folders, shards=4)
    handler = type("Handler", (_Server,), {"root": tmp_path / "bucket"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield tmp_path / "bucket"
    server.shutdown()
    thread.join()
    server.server_close()
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_both_kinds_of_shards_come_from_a_bucket(bucket, tmp_path):
    (shard,) = find_shards("gs://bucket/wds/train-0003.tar")
    assert shard.checksum is not None and shard.checksum[0] == "crc32c" and shard.version == "7"
    assert find_shards("gs://bucket/wds/train-*.tar")[3] == shard
    cache = ShardCache(str(tmp_path / "cache"))
    for name, data_dir in (("wds:{}/wds", None), ("mixed", "{}/tfds")):
        local, remote = (
            open_sources(
                name.format(root), data_dir=data_dir and data_dir.format(root), cache=cache
            )
            for root in (bucket, "gs://bucket")
        )
        for a, b in zip(local, remote, strict=True):
            assert [a[i] for i in (0, len(a) - 1)] == [b[i] for i in (0, len(b) - 1)]
