"""A small Hugging Face Hub on localhost: what loading and pushing a model need of it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A repository: its commits, and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit with these files alone, and let the refs name it. Returns its hash."""
        name = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs |= dict.fromkeys(refs or ("main",), name)
        return name


class Hub:
    """The state of the server: repositories, uploaded objects, and the requests that came in."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""
        self.read_only = self.broken = False

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> Repo:
        self.repos[name] = repo = Repo(**options)
        repo.commit(files)
        return repo

    @property
    def store(self) -> str:
        """Where large files are: another host, as on the Hub."""
        return self.address.replace("127.0.0.1", "localhost")

    @property
    def fetched(self) -> list[str]:
        """The files that were asked for."""
        return sorted({path.split("/resolve/")[1].split("/", 1)[1] for _, path in self.requests if "/resolve/" in path})


class _Problem(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            if self.hub.broken:
                raise _Problem(403)
            if self.command in ("POST", "PUT") and self.hub.read_only:
                raise _Problem(403)
            status, headers, data = self._route(path, body)
        except _Problem as problem:
            status, headers, data = problem.status, {"X-Error-Code": problem.code} if problem.code else {}, b"{}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for pattern, method in (
            (r"/api/validate-yaml", "_valid"),
            (r"/api/repos/create", "_create"),
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", "_tree"),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", "_branch"),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "_preupload"),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", "_commit"),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "_info"),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "_resolve"),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
            (r"/objects/(\w+)", "_object"),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                answer = getattr(self, method)(body, *match.groups())
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise _Problem(404)

    def _repo(self, name: str, revision: str | None) -> tuple[Repo, str]:
        if name not in self.hub.repos:
            raise _Problem(404, "RepoNotFound")
        repo, revision = self.hub.repos[name], revision or "main"
        commit = revision if revision in repo.commits else repo.refs.get(revision)
        if commit is None:
            raise _Problem(404, "RevisionNotFound")
        return repo, commit

    def _valid(self, body: bytes) -> Any:
        assert json.loads(body)["content"].startswith("---\n")
        return {"errors": [], "warnings": []}

    def _create(self, body: bytes) -> Any:
        values = json.loads(body)
        name = f"{values['organization']}/{values['name']}"
        if name in self.hub.repos:
            return 409, {}, json.dumps({"url": f"{self.hub.address}/{name}"}).encode()
        private = values.get("visibility") == "private" or bool(values.get("private"))
        self.hub.add(name, {".gitattributes": b""}, private=private)
        return {"url": f"{self.hub.address}/{name}", "id": name, "name": name}

    def _info(self, _: bytes, name: str, revision: str | None) -> Any:
        repo, commit = self._repo(name, revision)
        files = [{"rfilename": path} for path in repo.commits[commit]]
        about = {"id": name, "modelId": name, "sha": commit, "tags": [], "siblings": files}
        return {**about, "private": repo.private, "gated": "manual" if repo.gated else False}

    def _tree(self, _: bytes, name: str, revision: str) -> Any:
        repo, commit = self._repo(name, revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in repo.commits[commit].items()
        ]

    def _resolve(self, _: bytes, name: str, revision: str, path: str) -> Any:
        repo, commit = self._repo(name, revision)
        if repo.gated:
            raise _Problem(403, "GatedRepo")
        if path not in repo.commits[commit]:
            raise _Problem(404, "EntryNotFound")
        data = repo.commits[commit][path]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
        if path.endswith(".safetensors"):  # a large file, which is somewhere else
            self.hub.objects[digest] = data
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return 302, {**headers, **linked, "Location": f"{self.hub.store}/objects/{digest}"}, b""
        return 200, headers, data

    def _branch(self, _: bytes, name: str, branch: str) -> Any:
        repo, commit = self._repo(name, None)
        if branch in repo.refs:
            raise _Problem(409)
        repo.refs[branch] = commit
        return {}

    def _preupload(self, body: bytes, name: str, revision: str) -> Any:
        self._repo(name, revision)
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in names}
        return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in names]}

    def _batch(self, body: bytes, _: str) -> Any:
        found = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.hub.address}/objects/{file['oid']}"}} for file in found]
        return {"transfer": "basic", "objects": [{**x, "actions": y} for x, y in zip(found, actions, strict=True)]}

    def _object(self, body: bytes, digest: str) -> Any:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == digest
            self.hub.objects[digest] = body
        return 200, {"ETag": f'"{digest}"'}, self.hub.objects[digest] if self.command == "GET" else b""

    def _commit(self, body: bytes, name: str, revision: str) -> Any:
        repo, parent = self._repo(name, revision)
        files = dict(repo.commits[parent])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") != parent:
                    raise _Problem(412)
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = repo.commit(files, revision)
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port, until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
