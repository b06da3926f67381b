"""A server on this machine that speaks the part of Hugging Face's hub that this package uses.

The addresses and headers are those that `huggingface_hub` reads: `/USER/NAME/resolve/REVISION/FILE`
with `ETag`, `X-Linked-Etag`, `X-Repo-Commit` and ranges, errors in `X-Error-Code`, and redirects
for a renamed repository and for the files of a large storage. Uploads make a repository, ask how
each file is to be sent, send large ones by git's LFS, and commit.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/(?:tree|revision)/([^/?]+)")
_UPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/?]+)")
_LFS = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LARGE = ("safetensors", "bin", "pth")


@dataclasses.dataclass
class Repository:
    """A repository.

    Attributes:
      files: Contents by name.
      revisions: Commits by branch or tag.
      token: The token that a reader needs; `None` if everybody may read it.
      gated: Whether readers must have asked for access.
      renamed: Its new name; requests for the old one are redirected.
      checksums: Checksums that the server claims in place of the right ones.
      private: Whether it was made as a private one.
      messages: The messages of the commits that were uploaded.
    """

    files: dict[str, bytes]
    revisions: dict[str, str] = dataclasses.field(default_factory=lambda: {"main": "a" * 40})
    token: str | None = None
    gated: bool = False
    renamed: str | None = None
    checksums: dict[str, str] = dataclasses.field(default_factory=dict)
    private: bool = False
    messages: list[str] = dataclasses.field(default_factory=list)


class FakeHub(http.server.ThreadingHTTPServer):
    """The server.

    Attributes:
      repositories: Repositories by name.
      requests: Method, path and `Range` of every request so far.
      breaks: Numbers of bytes after which the next answers with a file break off.
      plain: Files by path that are no repository's, as on a web server.
      writers: The user that a token may write for.
      cuts: Parts of addresses at which the connection breaks.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.clear()

    def clear(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.breaks: list[int] = []
        self.plain: dict[str, bytes] = {}
        self.writers: dict[str, str] = {}
        self.cuts: list[str] = []
        self.blobs: dict[str, bytes] = {}

    def handle_error(self, request, client_address):
        """Ignores the errors of connections that a test breaks on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._take()

    def do_PUT(self):
        self._take()

    def _take(self):
        """Answers a request of an upload."""
        server, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        server.requests.append((self.command, path, None))
        if any(cut in path for cut in server.cuts):
            self.close_connection = True
            return None
        if path.startswith("/blobs/"):
            server.blobs[path.removeprefix("/blobs/")] = body
            return self._send(b"")
        user = server.writers.get((self.headers["Authorization"] or "").removeprefix("Bearer "))
        if user is None:
            return self._refuse(401, "")
        if path == "/api/validate-yaml":
            return self._send(b'{"errors": [], "warnings": []}')
        if path == "/api/repos/create":
            return self._create(user, json.loads(body))
        match = _UPLOAD.fullmatch(path) or _LFS.fullmatch(path)
        if match[1].partition("/")[0] != user:
            return self._refuse(403, "")
        if match.re is _LFS:
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{server.url}/blobs/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self._send(json.dumps({"transfer": "basic", "objects": objects}).encode())
        if match[2] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(json.dumps({"files": files}).encode())
        return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

    def _create(self, user, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != user:
            return self._refuse(403, "")
        answer = json.dumps({"url": f"{self.server.url}/{name}"}).encode()
        if name in self.server.repositories:
            return self._refuse(409, "", body=answer)
        private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.server.repositories[name] = Repository({}, private=private)
        return self._send(answer)

    def _commit(self, name, lines):
        repository = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        commit = f"{len(repository.messages):040x}"
        repository.revisions["main"] = commit
        answer = {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit}
        return self._send(json.dumps(answer).encode())

    def _answer(self):
        server = self.server
        path = self.path.partition("?")[0]
        server.requests.append((self.command, path, self.headers["Range"]))
        if path in server.plain:
            return self._send(server.plain[path])
        if path.startswith("/storage/"):  # where a redirect leads, without any header of the hub
            assert "Authorization" not in self.headers  # another host gets no token
            _, _, user, name, file = path.split("/", 4)
            return self._send(server.repositories[f"{user}/{name}"].files[file])
        match = _RESOLVE.fullmatch(path) or _TREE.match(path)
        if match is None:
            return self._refuse(404, "")
        repository = server.repositories.get(match[1])
        if repository is None:  # the hub does not tell who asks whether it is private
            return self._refuse(401, "RepoNotFound")
        if repository.renamed is not None:
            location = path.replace(match[1], repository.renamed, 1)
            return self._refuse(307, "", Location=location)
        if repository.token and self.headers["Authorization"] != f"Bearer {repository.token}":
            return self._refuse(401, "RepoNotFound")
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        commit = repository.revisions.get(match[2], match[2])
        if commit not in repository.revisions.values():
            return self._refuse(404, "RevisionNotFound")
        if match.re is _TREE:
            return self._send(self._listing(repository, commit, "tree" in path))
        file = match[3]
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        return self._file(match[1], repository, file, commit)

    def _listing(self, repository, commit, tree):
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            for name, data in repository.files.items()
        ]
        siblings = [{"rfilename": name} for name in repository.files]
        body = entries if tree else {"id": "x/y", "sha": commit, "siblings": siblings}
        return json.dumps(body).encode()

    def _file(self, name, repository, file, commit):
        data = repository.files[file]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.endswith(_LARGE):
            checksum = hashlib.sha256(data).hexdigest()
            headers["X-Linked-Etag"] = f'"{repository.checksums.get(file, checksum)}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["ETag"] = '"another"'
            location = f"http://localhost:{self.server.server_port}/storage/{name}/{file}"
            return self._refuse(302, "", Location=location, **headers)
        checksum = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers["ETag"] = f'"{repository.checksums.get(file, checksum)}"'
        return self._send(data, **headers)

    def _send(self, data: bytes, **headers: str):
        wanted = self.headers["Range"]
        start = int(re.fullmatch(r"bytes=(\d+)-.*", wanted)[1]) if wanted else 0
        if start > len(data):
            return self._refuse(416, "")
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self._headers(len(data) - start, headers)
        if self.command != "HEAD":
            breaks = self.server.breaks
            end = start + breaks.pop(0) if breaks else len(data)
            self.wfile.write(data[start:end])
            if end < len(data):
                self.close_connection = True

    def _refuse(self, status: int, code: str, body: bytes = b"", **headers: str):
        self.send_response(status)
        self._headers(len(body), headers | ({"X-Error-Code": code} if code else {}))
        self.wfile.write(body)

    def _headers(self, length: int, headers: dict[str, str]):
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """Runs a server until the end of the `with` statement."""
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()
