"""A web server on loopback for tests: it serves a folder, with the faults of real servers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `folder`.

    Attributes:
        ranges: whether parts of files are given.
        etags: whether answers have an ETag; else they have a time.
        drop: how many of the next answers with content end in its middle.
        drop_every: one such answer every this many requests; 0 for none.
        refuse: how many of the next requests are answered with 503.
        log: (method, path, Range) of every request.
    """

    daemon_threads = True
    folder: Path
    ranges = etags = True
    drop = drop_every = refuse = 0
    log: list[tuple[str, str, str | None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requests(self, method: str = "GET") -> list[tuple[str, str | None]]:
        return [(path, wanted) for kind, path, wanted in self.log if kind == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        self.server.log.append((self.command, self.path, self.headers.get("Range")))
        file = self.server.folder / self.path.lstrip("/")
        if self.server.refuse > 0:
            self.server.refuse -= 1
            return self._send(503, b"")
        if not file.is_file():
            return self._send(404, b"")
        content = file.read_bytes()
        etag, date = f'"{hashlib.sha256(content).hexdigest()[:16]}"', self.date_time_string(int(file.stat().st_mtime))
        if self.headers.get("If-Match", etag) != etag or self.headers.get("If-Unmodified-Since", date) != date:
            return self._send(412, b"")
        marks = {"ETag": etag} if self.server.etags else {"Last-Modified": date}
        wanted = self.headers.get("Range")
        if wanted is None or not self.server.ranges:
            return self._send(200, content, **marks)
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        if not part:
            return self._send(416, b"")
        return self._send(206, part, **marks, **{"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        every = self.server.drop_every
        if content and (self.server.drop > 0 or (every and len(self.server.log) % every == 0)):
            self.server.drop -= self.server.drop > 0
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A server of a folder, on a free port of 127.0.0.1."""
    with Server(("127.0.0.1", 0), _Handler) as server:
        server.folder, server.log = folder, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
