"""A small hub on this machine: what huggingface_hub asks for, and the ways in which it fails."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


@dataclass
class Hub:
    """Repositories and what is done to their files.

    Attributes:
        commits: of each repository, from commit to files.
        branches: of each repository, from branch to commit.
        gated: repositories whose terms are not accepted.
        dropped: number of times that the connection breaks in the middle of a file.
        sent: what is sent instead of a file's content.
        log: methods and paths of the requests.
        locked: whether nothing may be written.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    locked: bool = False

    def add(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Store a commit and return it."""
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = files
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """Return the files whose content was asked for."""
        return sorted({line.split("/", 5)[5] for line in self.log if line.startswith("GET /owner")})

    def start(self) -> tuple[ThreadingHTTPServer, str]:
        """Serve; returns the server and its address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        # It looks for the end of its test so often, in seconds.
        Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        return server, f"http://127.0.0.1:{server.server_address[1]}"


def described(name: str, content: bytes) -> dict:
    """As the hub describes a file; large ones are in Git LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    values = {"oid": blob, "blobId": blob, "size": len(content)}
    if name.endswith((".safetensors", ".bin")):
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 134}
        values["lfs"] = lfs
    return values


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        """Make a repository, say how files are uploaded, and take a commit."""
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.command = "GET"  # whose replies have a body
        if self.hub.locked:
            return self.fail(403, "Forbidden")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name not in self.hub.commits:
                self.hub.add(name, {})
            return self.reply(200, json.dumps({"url": f"/{name}"}).encode(), {})
        if path == "/api/validate-yaml":  # the header of a card
            return self.reply(200, b'{"errors": [], "warnings": []}', {})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if found is None:
            return self.fail(404, "RepoNotFound")
        if found[2] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.reply(200, json.dumps({"files": files}).encode(), {})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.hub.add(found[1], files)
        values = {"commitUrl": f"/{found[1]}/commit/{commit}", "commitOid": commit}
        return self.reply(200, json.dumps(values).encode(), {})

    def fail(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def commit_of(self, repository: str, revision: str) -> str | None:
        commits = self.hub.commits[repository]
        return revision if revision in commits else self.hub.branches[repository].get(revision)

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repository = found[1] if found else ""
        if repository in self.hub.gated:
            return self.fail(403, "GatedRepo")
        if found is None or repository not in self.hub.commits:
            return self.fail(404, "RepoNotFound")
        commit = self.commit_of(repository, (api[3] or "main") if api else found[2])
        if commit is None:
            return self.fail(404, "RevisionNotFound")
        files = self.hub.commits[repository][commit]
        if api:
            entries = {name: described(name, content) for name, content in files.items()}
            if api[2] == "tree":
                values = [{"type": "file", "path": n, **entry} for n, entry in entries.items()]
            else:
                siblings = [{"rfilename": n, **entry} for n, entry in entries.items()]
                values = {"id": repository, "sha": commit, "siblings": siblings}
            return self.reply(200, json.dumps(values).encode(), {})
        if found[3] not in files:
            return self.fail(404, "EntryNotFound")
        return self.send_file(found[3], files[found[3]], commit)

    def send_file(self, name: str, content: bytes, commit: str) -> None:
        entry = described(name, content)
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]
        content = self.hub.sent.get(name, content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers["X-Linked-Size"] = str(len(content))
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(first[1]) if first else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        if self.command == "GET" and self.hub.dropped.get(name, 0):
            self.hub.dropped[name] -= 1
            headers["Content-Length"] = str(len(rest))
            self.reply(206 if start else 200, rest[: len(rest) // 2], headers)
            self.close_connection = True
            return
        self.reply(206 if start else 200, rest, headers)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    server, address = hub.start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    server.shutdown()
    server.server_close()
