"""A hub of models on the loopback interface, which keeps what it is sent and gives it back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """
    Attributes:
        created: what repositories were asked for.
        files: what they hold, by "USER/NAME/path".
        tokens: what requests were made with.
        refuses: the code and the text with which everything is answered, if it is set.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses: tuple[int, str] | None = None
        self.address = f"http://127.0.0.1:{self.server_port}"

    def copy(self, repository: str, folder: Path) -> Path:
        """Writes the files of a repository into a folder."""
        for name, content in self.files.items():
            if name.startswith(f"{repository}/"):
                path = folder / name.removeprefix(f"{repository}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return folder


@contextmanager
def hub_here(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Yields a hub that the client takes for the only one, with its token and its cache."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "hf_thetokenofthetest")
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses is not None:
            code, text = self.server.refuses
            self._answer({"error": text}, code=code)
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/me/tiny"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer({"error": "unknown"}, code=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if (found := re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/\w+/(.+)", path)) is not None:
            content = self.server.files.get(f"{found[1]}/{found[2]}")
            if content is None:
                self._answer({"error": "no entry"}, code=404, headers={"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha256(content).hexdigest()
                self._send(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        elif (found := re.fullmatch(r"/api/models/([\w-]+/[\w.-]+)(/revision/\w+)?", path)) is not None:
            names = [name.removeprefix(f"{found[1]}/") for name in self.server.files if name.startswith(f"{found[1]}/")]
            self._answer({"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _commit(self, body: bytes) -> None:
        repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
        address = f"{self.server.address}/{repository}/commit/{COMMIT}"
        self._answer({"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})

    def _answer(self, content: Any, *, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), code=code, headers={"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, *, code: int = 200, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""
