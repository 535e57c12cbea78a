"""A small model hub on this machine: one repository, served as the hub's client asks for it, that breaks where a test tells it."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.servers import running

COMMIT = "c0ffee" * 6 + "c0de"
REVISIONS = ("main", "v1", COMMIT)


class Hub(http.server.ThreadingHTTPServer):
    """Serves `folder` as owner/name.

    status: answers everything with it, when not 200. broken: files (as in the repository) whose content ends after its first half.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.status = 200
        self.broken: set[str] = set()
        self.given: list[tuple[str, str, int]] = []  # revision, file, first byte
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def handle_error(self, request, client_address) -> None:
        pass  # connections that the tests break


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if hub.status != 200:
            return self.give(hub.status, b"", x_error_code="GatedRepo", x_error_message="Access to model owner/name is restricted.")
        if found := re.fullmatch(r"/api/models/owner/name(?:/revision/(\w+))?", path):
            if (found[1] or "main") in REVISIONS:
                about = {"_id": "1", "id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": file} for file in hub.files()]}
                return self.give(200, json.dumps(about).encode())
        elif (found := re.fullmatch(r"/api/models/owner/name/tree/(\w+)", path)) and found[1] in REVISIONS:
            return self.give(200, json.dumps([self.entry(file) for file in hub.files()]).encode())
        elif (found := re.fullmatch(r"/owner/name/resolve/(\w+)/(.+)", path)) and found[1] in REVISIONS and found[2] in hub.files():
            return self.file(found[1], found[2])
        return self.give(404, b"", x_error_code="RevisionNotFound" if path.startswith("/api/models/owner/name/") else "RepoNotFound")

    def entry(self, file: str) -> dict[str, object]:
        content = (self.server.folder / file).read_bytes()
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def file(self, revision: str, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        tags = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if first:
            tags["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            with self.server.lock:
                self.server.given.append((revision, name, first))
        cut = name in self.server.broken and self.command == "GET"
        self.give(206 if first else 200, content[first:], cut=cut, **tags)

    def give(self, status: int, content: bytes, *, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


def serving(folder: Path) -> AbstractContextManager[Hub]:
    """A hub that runs until the block ends."""
    return running(Hub(folder))
