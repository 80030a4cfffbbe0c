"""The HTTP interface of the Hugging Face hub, as far as huggingface_hub pushes and loads models, on a socket here.

What it is given is on disk: `lfs/SHA256`, and the files of each branch in `repositories/ORG/NAME/BRANCH/`. A large file
in a branch is its LFS pointer.
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_writes": ("ORG", True), "hf_reads": ("ORG", False)}  # the namespace of each, and whether it may write
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server. `faults` answer the next requests whose method and path match: (pattern, status, message)."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.lock = Lock()
        self.faults: list[tuple[str, int, str]] = []
        self.asked: list[str] = []  # METHOD PATH of each request
        self.url = f"http://127.0.0.1:{self.server_port}"

    def branch(self, repository: str, name: str = "main") -> Path:
        """The folder of a branch, which a commit's id leads to as well."""
        repositories = self.root / "repositories" / repository
        folders = [folder_of_head for folder_of_head in repositories.glob("*/") if self.head(folder_of_head) == name]
        return folders[0] if folders else repositories / name.replace("/", "_")

    @staticmethod
    def head(branch: Path) -> str:
        """The id of a branch's newest commit: of its files."""
        files = sorted(file for file in branch.rglob("*") if file.is_file())
        listing = "".join(f"{file.relative_to(branch)} {git_sha(file.read_bytes())}\n" for file in files)
        return hashlib.sha1(listing.encode()).hexdigest()

    def content(self, file: Path) -> tuple[bytes, str]:
        """The content behind a file of a branch, and its ETag."""
        content = file.read_bytes()
        if pointer := re.match(rb"version https://git-lfs.*\noid sha256:(\w+)\n", content):
            digest = pointer[1].decode()
            return (self.root / "lfs" / digest).read_bytes(), digest
        return content, git_sha(content)


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    (root / "lfs").mkdir(parents=True)
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.more = more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = urlsplit(self.path)
        path = unquote(target.path)
        self.query = parse_qs(target.query)
        request = f"{self.command} {path}"
        self.server.asked.append(request)
        try:
            with self.server.lock:
                for fault in self.server.faults:
                    if re.search(fault[0], request):
                        self.server.faults.remove(fault)
                        raise _Refused(fault[1], fault[2])
                self._route(request, body)
        except _Refused as error:
            head = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(json.dumps({"error": error.message, **error.more}).encode(), error.status, head)

    def _route(self, asked: str, body: bytes) -> None:
        for pattern, answer in _ROUTES.items():
            if match := re.fullmatch(pattern, asked):
                return answer(self, body, *match.groups())
        raise _Refused(404, f"no such page: {asked}")

    def _send(self, content: bytes, status: int = 200, head: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(head or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def _may_write(self, namespace: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in TOKENS:
            raise _Refused(401, "Invalid username or password.")
        if TOKENS[token] != (namespace, True):
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {namespace}")

    def _files(self, repository: str, revision: str) -> Path:
        if not (self.server.root / "repositories" / repository).is_dir():
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if not (folder := self.server.branch(repository, revision)).is_dir():
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return folder

    def create(self, body: bytes) -> None:
        content = json.loads(body)
        self._may_write(content["organization"])
        repository = f"{content['organization']}/{content['name']}"
        folder = self.server.branch(repository)
        if folder.exists():
            raise _Refused(409, "You already created this model repo", url=f"{self.server.url}/{repository}")
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        (folder.parent / "visibility").write_text(content.get("visibility", "public"))
        self._json({"url": f"{self.server.url}/{repository}", "id": repository})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if re.search(r"^license: made-up", content, re.M):
            errors = [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
            return self._send(json.dumps({"errors": errors}).encode(), 400)
        self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, repository: str, revision: str | None) -> None:
        folder = self._files(repository, revision or "main")
        siblings = [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], **_lfs(entry)}
            for entry in self._listing(folder)
        ]
        private = (folder.parent / "visibility").read_text() == "private"
        self._json({"id": repository, "sha": self.server.head(folder), "private": private, "siblings": siblings})

    def tree(self, body: bytes, repository: str, revision: str) -> None:
        self._json(self._listing(self._files(repository, revision)))

    def _listing(self, folder: Path) -> list[dict[str, Any]]:
        listing = []
        for file in sorted(folder_of_head for folder_of_head in folder.rglob("*") if folder_of_head.is_file()):
            content, tag = self.server.content(file)
            entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(content)}
            listing.append(entry | {"oid": git_sha(file.read_bytes())})
            if len(tag) == 64:
                listing[-1]["lfs"] = {"oid": tag, "size": len(content), "pointerSize": 1}
        return listing

    def preupload(self, body: bytes, repository: str, revision: str) -> None:
        self._may_write(repository.partition("/")[0])
        folder = self._files(repository, revision)
        files = []
        for entry in json.loads(body)["files"]:
            large = entry["size"] > 100_000 or entry["path"].endswith((".safetensors", ".onnx"))
            target = folder / entry["path"]
            oid = self.server.content(target)[1] if target.is_file() else None
            mode = "lfs" if large else "regular"
            files.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, body: bytes, repository: str) -> None:
        self._may_write(repository.partition("/")[0])
        objects = []
        for entry in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            is_stored = (self.server.root / "lfs" / entry["oid"]).is_file()
            objects.append(entry if is_stored else {**entry, "actions": upload})
        self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, digest: str) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            raise _Refused(400, "the content is not that of the SHA-256")
        (self.server.root / "lfs" / digest).write_bytes(body)
        self._json({})

    def commit(self, body: bytes, repository: str, revision: str) -> None:
        self._may_write(repository.partition("/")[0])
        folder = self._files(repository, revision)
        header, *changes = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", self.server.head(folder)) != self.server.head(folder):
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        request = f"{self.server.url}/{repository}/discussions/1" if "create_pr" in self.query else None
        if request:
            folder = Path(shutil.copytree(folder, folder.with_name("refs_pr_1")))
        for change in changes:
            value = change["value"]
            file = folder / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if change["key"] == "lfsFile":
                assert (self.server.root / "lfs" / value["oid"]).is_file()
                file.write_text(_POINTER.format(value["oid"], value["size"]))
            else:
                assert change["key"] == "file"
                file.write_bytes(base64.b64decode(value["content"]))
        head = self.server.head(folder)
        url = f"{self.server.url}/{repository}/commit/{head}"
        self._json({"success": True, "commitOid": head, "commitUrl": url, "pullRequestUrl": request})

    def resolve(self, body: bytes, repository: str, revision: str, name: str) -> None:
        folder = self._files(repository, revision)
        if not (folder / name).is_file():
            raise _Refused(404, "Entry not found", "EntryNotFound")
        content, tag = self.server.content(folder / name)
        self._send(content, 200, {"ETag": f'"{tag}"', "X-Repo-Commit": self.server.head(folder)})


def _lfs(entry: dict[str, Any]) -> dict[str, Any]:
    """The LFS part of an entry of a tree, as the information on a model has it."""
    return {"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Any] = {
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.validate,
    rf"GET /api/models/{_NAME}(?:/revision/(.+))?": _Handler.info,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _Handler.tree,
    rf"POST /api/models/{_NAME}/preupload/(.+)": _Handler.preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /lfs/(\w+)": _Handler.put,
    rf"POST /api/models/{_NAME}/commit/(.+)": _Handler.commit,
    rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
}
