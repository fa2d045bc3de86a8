"""A Hub in miniature: serves folders under the addresses that huggingface_hub and datasets ask, on the loopback.

Knows model and data repositories, a gated one, and refuses all others as the Hub does: by the header X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@contextmanager
def small_hub(repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve the folders, by repository name, while it is entered; gives the address for HF_ENDPOINT."""

    class Handler(_Handler):
        repos, closed = repositories, gated

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    repos: dict[str, Path]
    closed: tuple[str, ...]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := _FILE.fullmatch(path):
            self.file(found["name"], found["path"])
        elif found := _API.fullmatch(path):
            self.api(found["name"], found["rest"] or "")
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:  # /paths-info: what is known of the paths in the body
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        found = _API.fullmatch(self.path.partition("?")[0])
        if found is None or found["name"] not in self.repos:
            self.refuse(404, "RepoNotFound")
            return
        asked = json.loads(body)["paths"] if body.startswith("{") else re.findall(r"paths=([^&]+)", body)
        folder = self.repos[found["name"]]
        self.json([entry for entry in _tree(folder) if entry["path"] in asked])

    def api(self, name: str, rest: str) -> None:
        if name not in self.repos:
            self.refuse(
                404 if name not in self.closed else 403, "RepoNotFound" if name not in self.closed else "GatedRepo"
            )
        elif rest.startswith("/tree/"):
            under = rest.split("/", 3)[3] if rest.count("/") > 2 else ""
            entries = [e for e in _tree(self.repos[name]) if e["path"].startswith(f"{under}/" if under else "")]
            self.json(entries) if entries else self.refuse(404, "EntryNotFound")
        else:
            siblings = [{"rfilename": entry["path"]} for entry in _tree(self.repos[name]) if entry["type"] == "file"]
            self.json({"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
                       "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def file(self, name: str, path: str) -> None:
        place = self.repos.get(name, Path("/nowhere")) / path
        if name in self.closed:
            self.refuse(403, "GatedRepo")
        elif name not in self.repos:
            self.refuse(401, "RepoNotFound")  # as the Hub does without a log-in: it might be a private one
        elif not place.is_file():
            self.refuse(404, "EntryNotFound")
        else:
            self.answer(200, place.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_id(place)}"'})

    def json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": f"{code} here", "X-Repo-Commit": COMMIT}
        self.answer(status, b"{}", headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


def _tree(folder: Path) -> list[dict[str, Any]]:
    entries = []
    for path in sorted(folder.rglob("*")):
        kind = "directory" if path.is_dir() else "file"
        entry = {"type": kind, "path": path.relative_to(folder).as_posix(), "oid": _id(path), "size": 0}
        entries.append(entry | ({"size": path.stat().st_size} if kind == "file" else {}))
    return entries


def _id(path: Path) -> str:
    return hashlib.sha1(path.read_bytes() if path.is_file() else str(path).encode()).hexdigest()
