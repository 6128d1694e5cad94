"""A small Hub for tests: the genuine huggingface_hub client talks to it over HTTP, through HF_ENDPOINT.

It keeps repositories as commits of {path: bytes}, takes regular and LFS uploads, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READ_TOKEN = "hf_write", "hf_read"
_LFS_SUFFIXES = (".safetensors", ".png")


@dataclass
class Repo:
    """Branches, commits and pull requests of one model repository."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files
    branches: dict[str, str] = field(default_factory=dict)  # branch -> commit
    messages: list[str] = field(default_factory=list)
    pull_requests: int = 0

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{message}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class Hub:
    """The server: `with Hub() as hub: ... hub.url`.

    `hub.fail(pattern, status=..., times=..., headers=..., drop=..., silent=...)` makes requests whose "METHOD path"
    matches fail; a `silent` one is never answered.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []  # what was sent to make a repository
        self.failures: list[dict[str, Any]] = []
        self.over = threading.Event()  # set: silent requests are let go
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        for kept in (self.repos, self.lfs, self.requests, self.created, self.failures):
            kept.clear()
        self.over.set()
        self.over = threading.Event()

    def fail(
        self,
        pattern: str,
        status: int = 500,
        times: int = 10**6,
        drop: bool = False,
        silent: bool = False,
        **headers: str,
    ) -> None:
        how = {"status": status, "drop": drop, "silent": silent, "headers": headers}
        self.failures.append({"pattern": pattern, "times": times} | how)

    def add(self, repo_id: str, files: dict[str, bytes]) -> Repo:
        """A repository that somebody else made."""
        repo = self.repos[repo_id] = Repo()
        repo.commit("main", files, "made elsewhere")
        return repo


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    # ------------------------------------------------------------------------------------------------ answering
    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{method} {path}")
        for failure in self.hub.failures:
            if failure["times"] > 0 and re.search(failure["pattern"], f"{method} {path}"):
                failure["times"] -= 1
                if failure["silent"]:
                    self.hub.over.wait(300)
                    self.close_connection = True
                    return self.connection.close()
                if failure["drop"]:  # in the middle of what is being sent
                    self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
                    self.close_connection = True
                    return self.connection.close()
                self._body()
                return self._json({"error": "told to fail"}, failure["status"], **failure["headers"])
        self.body = self._body()
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, f"{method} {path}"):
                return getattr(self, name)(*match.groups())
        return self._json({"error": f"no such address: {method} {path}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, answer: Any, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(answer).encode(), status, **{"Content-Type": "application/json"} | headers)

    def _bytes(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_write(self) -> bool:
        if self._token() == TOKEN:
            return True
        status = 403 if self._token() == READ_TOKEN else 401
        self._json({"error": "not allowed"}, status)
        return False

    def _repo(self, repo_id: str, revision: str | None = None) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self._token() not in (TOKEN, READ_TOKEN)):
            self._json({"error": "Repository not found"}, 404 if self._token() else 401, X_Error_Code="RepoNotFound")
            return None
        if revision is not None and repo.resolve(revision) is None:
            self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return repo

    # --------------------------------------------------------------------------------------------------- routes
    def create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.body)
        self.hub.created.append(asked)
        repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        repo_id = f"spaces/{repo_id}" if asked.get("type") == "space" else repo_id
        known = repo_id in self.hub.repos
        if not known:
            repo = self.hub.repos[repo_id] = Repo(
                private=asked.get("visibility") == "private" or bool(asked.get("private"))
            )
            repo.commit("main", {".gitattributes": b""}, "initial commit")
        self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id}, 409 if known else 200)

    def whoami(self) -> None:
        if self._token() not in (TOKEN, READ_TOKEN):
            return self._json({"error": "Invalid user token."}, 401)
        return self._json({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def branch(self, repo_id: str, name: str) -> None:
        if not self._may_write() or (repo := self._repo(repo_id)) is None:
            return
        known = name in repo.branches
        repo.branches.setdefault(name, repo.branches["main"])
        self._json({}, 409 if known else 201)

    def preupload(self, repo_id: str, revision: str) -> None:
        if not self._may_write() or (repo := self._repo(repo_id, revision)) is None:
            return
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular"
            there = repo.files(revision).get(file["path"])
            oid = None if there is None else hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def lfs_batch(self, repo_id: str) -> None:
        if not self._may_write():
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                href = f"{self.hub.url}/lfs/{item['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json({"error": "the content does not fit its hash"}, 400)
        self.hub.lfs[oid] = self.body
        return self._json({})

    def lfs_verify(self) -> None:
        self._json({}, 200 if json.loads(self.body)["oid"] in self.hub.lfs else 404)

    def commit(self, repo_id: str, revision: str) -> None:
        if not self._may_write() or (repo := self._repo(repo_id, revision)) is None:
            return
        files, message = dict(repo.files(revision)), ""
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        answer: dict[str, Any] = {}
        if self.query.get("create_pr") == ["1"]:
            repo.pull_requests += 1
            revision = f"refs/pr/{repo.pull_requests}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{repo.pull_requests}"
        oid = repo.commit(revision, files, message)
        self._json(answer | {"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "success": True})

    def info(self, repo_id: str, revision: str | None = None) -> None:
        if (repo := self._repo(repo_id, revision or "main")) is None:
            return
        siblings = [{"rfilename": path} for path in repo.files(revision or "main")]
        sha = repo.resolve(revision or "main")
        self._json({"id": repo_id, "sha": sha, "siblings": siblings, "private": repo.private, "tags": []})

    def tree(self, repo_id: str, revision: str, folder: str | None = None) -> None:
        if (repo := self._repo(repo_id, revision)) is None:
            return
        below = f"{folder}/" if folder else ""
        is_recursive = self.query.get("recursive", ["true"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in repo.files(revision).items():
            first = path[len(below) :].split("/")[0]
            if not path.startswith(below):
                continue
            if not is_recursive and path != below + first:
                entries[below + first] = {"type": "directory", "path": below + first, "size": 0, "oid": "0" * 40}
                continue
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if path.endswith(_LFS_SUFFIXES):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries[path] = entry
        if folder and not entries:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        self._json(list(entries.values()))

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        if (repo := self._repo(repo_id, revision)) is None:
            return
        headers = {"X_Repo_Commit": repo.resolve(revision)}
        content = repo.files(revision).get(path)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", **headers)
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if path.endswith(_LFS_SUFFIXES):
            headers |= {"X_Linked_Size": str(len(content)), "X_Linked_Etag": headers["ETag"]}
        return self._bytes(content, 200, **headers)


_ID = r"((?:spaces/)?[^/]+/[^/]+)"  # a Space is kept under "spaces/user/name"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"POST /api/(?:models/)?{_ID}/branch/(.+)", "branch"),
    (rf"POST /api/(?:models/)?{_ID}/preupload/(.+)", "preupload"),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (r"POST /lfs-verify", "lfs_verify"),
    (rf"POST /api/(?:models/)?{_ID}/commit/(.+)", "commit"),
    (rf"GET /api/(?:models/|datasets/)?{_ID}/tree/(refs/pr/\d+|[^/]+)(?:/(.+))?", "tree"),
    (rf"GET /api/(?:models/|datasets/)?{_ID}/revision/(.+)", "info"),
    (rf"GET /api/(?:models/|datasets/)?{_ID}", "info"),
    (rf"(?:GET|HEAD) /(?:datasets/)?{_ID}/resolve/([^/]+|refs/pr/\d+)/(.+)", "resolve"),
]
