"""The released checkpoints, from a server on this machine in place of Google Drive."""

import hashlib
import http.server
import json
import pathlib
import re
import sys
import threading

import pytest

from noah_jax import load_model
from noah_jax.convert.__main__ import main
from noah_jax.convert.program import convert
from noah_jax.hub import released
from noah_jax.hub.released import fetch
from noah_jax.models.published import published
from tests.pytorch.files import torch_files as files

NAME = "noah_resnet18"
ID = published()[NAME].google_drive_id


class _Server(http.server.ThreadingHTTPServer):
    """Serves `data` at the path `/file/ID`, in ranges if asked.

    Attributes:
      breaks: Numbers of bytes after which the next answers break off, one for each answer.
      ranges: The `Range` of every request so far.
    """

    def __init__(self, data: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.breaks, self.ranges = data, [], []
        self.url = f"http://127.0.0.1:{self.server_port}/file/{{id}}"

    def handle_error(self, request, client_address):
        """Ignores the errors of connections that a test breaks on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        if self.path != f"/file/{ID}":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        total = len(server.data)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + server.breaks.pop(0) if server.breaks else total
        self.wfile.write(server.data[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A file of a small NOAH ResNet, which does not say the model's name."""
    state = files.golden_state(NAME, width=4, num_classes=5)
    return files.write(tmp_path_factory.mktemp("small") / "in.pth", state, "cnn", NAME)


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes gdown keep what it received in smaller chunks than the file; the default is larger."""
    pytest.importorskip("gdown")
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1000)


@pytest.fixture
def server(checkpoint, monkeypatch):
    with _Server(checkpoint.read_bytes()) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv(released.URL_VARIABLE, server.url)
        monkeypatch.setattr(released, "_RETRIES", 0)
        yield server
        server.shutdown()
        thread.join()


def _error(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    # A progress bar may stand in front.
    line = said[said.index("error: ") :]
    assert line.count("\n") == 1
    return line


def _names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_released_checkpoint(server, checkpoint, tmp_path, capsys):
    pytest.importorskip("gdown")
    cache = tmp_path / "cache"
    arguments = ["--released", NAME, str(tmp_path / "folder"), "--cache", str(cache)]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "noah_resnet18: 11.7 million parameters, top-1 71.81 % published" in said
    assert not (tmp_path / "folder").exists()
    assert main(arguments) == 0
    # Downloaded once.
    assert server.ranges == [None]
    model, _, _ = load_model(str(tmp_path / "folder"))
    assert model.name == NAME
    checksum = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert json.loads((cache / f"{NAME}.pth.json").read_text())["sha256"] == checksum
    source = json.loads((tmp_path / "folder" / "model.json").read_text())["source"]
    assert source["file"] == f"{NAME}.pth" and source["sha256"] == checksum
    assert _names(cache) == {f"{NAME}.pth", f"{NAME}.pth.json", f"{NAME}.pth.lock"}


def test_a_broken_download_goes_on(server, small_chunks, checkpoint, tmp_path, capsys):
    server.breaks = [3000]
    arguments = ["--released", NAME, tmp_path / "folder", "--cache", tmp_path]
    said = _error(capsys, *arguments)
    page = f"https://drive.google.com/file/d/{ID}/view"
    assert "it continues" in said and f"open {page} in a browser" in said
    (part,) = tmp_path.glob("*.part")
    assert part.name.startswith(f"{NAME}.pth.download") and part.stat().st_size == 3000
    # gdown asks for the whole first, then from where it stopped.
    server.breaks = [0, 5000]
    _error(capsys, *arguments)
    assert part.stat().st_size == 8000
    path = pathlib.Path(fetch(NAME, cache=tmp_path))
    assert [x for x in server.ranges if x] == ["bytes=3000-", "bytes=8000-"]
    assert path.read_bytes() == checkpoint.read_bytes()
    assert _names(tmp_path) == {f"{NAME}.pth", f"{NAME}.pth.json", f"{NAME}.pth.lock"}


def test_a_broken_connection_is_taken_up(server, small_chunks, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "_RETRIES", 2)
    monkeypatch.setattr("random.uniform", lambda low, high: 0)
    server.breaks = [3000, 5000]
    assert pathlib.Path(fetch(NAME, cache=tmp_path)).read_bytes() == checkpoint.read_bytes()
    assert server.ranges == [None, "bytes=3000-", "bytes=8000-"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            b"\n<!DOCTYPE html><title>Google Drive -\n Quota exceeded</title>",
            "web page ('Google Drive - Quota exceeded'), not a checkpoint",
        ),
        (b"", "the file is empty"),
        (None, "the file is corrupt or truncated"),
        (b"PK\3\4 cut short", "the file is corrupt or truncated"),
    ],
)
def test_what_is_no_checkpoint_is_not_kept(data, problem, server, tmp_path, capsys):
    pytest.importorskip("gdown")
    right = server.data
    if data is None:  # one bit of one weight
        data = bytearray(right)
        data[1000] ^= 1
    server.data = bytes(data)
    arguments = ["--released", NAME, tmp_path / "folder", "--cache", tmp_path / "cache"]
    said = _error(capsys, *arguments)
    assert problem in said and "it was removed" in said
    assert _names(tmp_path / "cache") == {f"{NAME}.pth.lock"}
    server.data = right
    assert pathlib.Path(fetch(NAME, cache=tmp_path / "cache")).read_bytes() == right


def test_no_server(tmp_path, capsys, monkeypatch):
    pytest.importorskip("gdown")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Port 9 is the discard service's, which nothing offers.
    monkeypatch.setenv(released.URL_VARIABLE, "http://127.0.0.1:9/{id}")
    monkeypatch.setattr(released, "_RETRIES", 0)
    said = _error(capsys, "--released", NAME, tmp_path / "folder", "--cache", tmp_path)
    assert f"cannot be downloaded from http://127.0.0.1:9/{ID}: ConnectionError" in said
    assert f"open https://drive.google.com/file/d/{ID}/view in a browser" in said
    assert _names(tmp_path) == {f"{NAME}.pth.lock"}


def test_the_cache_is_verified(checkpoint, tmp_path, capsys, monkeypatch):
    # A file laid there by hand counts as the first download, and needs no gdown.
    monkeypatch.setitem(sys.modules, "gdown", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "noah_jax" / "released"
    cache.mkdir(parents=True)
    path, record = cache / f"{NAME}.pth", cache / f"{NAME}.pth.json"
    data = checkpoint.read_bytes()
    path.write_bytes(data)
    arguments = ["--released", NAME, str(tmp_path / "folder"), "--dry-run"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    changed = bytes([data[0], data[1] ^ 1]) + data[2:]
    path.write_bytes(changed)
    capsys.readouterr()
    said = _error(capsys, *arguments)
    expected, found = (hashlib.sha256(x).hexdigest() for x in (data, changed))
    assert f"{path} has SHA-256 {found}, but {expected} at" in said
    assert f"remove {record} if this file is the right one" in said
    assert path.read_bytes() == changed
    record.write_text("{")
    assert f"{record} is corrupt" in _error(capsys, *arguments)


def test_without_gdown(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    said = _error(capsys, "--released", NAME, tmp_path / "folder", "--cache", tmp_path)
    assert "needs gdown, which is not installed: pip install 'gdown>=6.3'" in said


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("noah_resnet81", "no registered model has this name"),
        ("noah_resmlp_12_224", "the authors released no checkpoint of this model"),
    ],
)
def test_what_was_not_released(name, problem, tmp_path, capsys):
    said = _error(capsys, "--released", name, tmp_path / "folder", "--cache", tmp_path)
    assert problem in said and "the nearest of the 52 released ones are noah_" in said
    assert not list(tmp_path.iterdir())


def test_the_destination_is_looked_at_first(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    said = _error(capsys, "--released", NAME, tmp_path / "folder", "--cache", tmp_path / "cache")
    assert "exists already" in said and not (tmp_path / "cache").exists()


def test_one_download_at_a_time(server, tmp_path):
    pytest.importorskip("gdown")
    threads = [threading.Thread(target=fetch, args=[NAME], kwargs={"cache": tmp_path})]
    threads += [threading.Thread(target=fetch, args=[NAME], kwargs={"cache": tmp_path})]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert _names(tmp_path) == {f"{NAME}.pth", f"{NAME}.pth.json", f"{NAME}.pth.lock"}


@pytest.mark.parametrize("name", ["resmlp_12_224", "resmlp_12_distilled_224"])
def test_the_hint_chooses_between_names_of_the_same_weights(name, tmp_path):
    state = files.golden_state("resmlp_12_224", num_classes=5, image_size=32)
    source = files.write(tmp_path / "in.pth", state, "bare", "")
    loaded = convert(str(source), str(tmp_path / "out"), hint=name, dry_run=True)
    assert loaded.model.name == name
