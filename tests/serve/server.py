"""A server of the page in a thread of the test process, and a client that sends exactly what it is told."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from mmcl.serve.app import create_app
from mmcl.serve.gallery import Gallery
from mmcl.serve.guard import Session
from mmcl.serve.running import config_of, listen

OURS = {"x-mmcl": "1"}


@dataclass(frozen=True)
class Answer:
    """What a server answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int
    token: str | None

    @property
    def url(self) -> str:
        """The link that `mmcl serve` would print."""
        return f"http://127.0.0.1:{self.port}/" + (f"#token={self.token}" if self.token else "")

    def ask(self, method: str, path: str, body: bytes | None, **headers: str) -> Answer:
        """Sends a request; underscores in the names of headers stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None and "Content_Length" not in headers and "Transfer_Encoding" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        """Sends JSON as the page does."""
        given = {"x_mmcl": "1", "Content_Type": "application/json", **headers}
        return self.ask("POST", path, json.dumps(value).encode(), **given)

    def post_form(self, path: str, files: list[bytes], **fields: str) -> Answer:
        """Sends a form with files, as the page does."""
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
        body = b"".join([*parts, *(head + file + b"\r\n" for file in files), b"--x--\r\n"])
        return self.ask("POST", path, body, x_mmcl="1", Content_Type="multipart/form-data; boundary=x")

    def session(self) -> str:
        """The cookie that the page gets for the token."""
        return self.post("/api/session", {"token": self.token}).headers["set-cookie"].partition(";")[0]


@contextmanager
def served(gallery: Gallery, *, token: str | None = None) -> Iterator[Served]:
    """Serves a gallery within the block."""
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(config_of(create_app(gallery, Session(token, port))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Served(port, token)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
