"""Servers with invalid responses: no more is read than was requested, and nothing of it is used."""

from __future__ import annotations

import gzip
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from huggingface_hub import constants

from mmcl.data.open import open_source
from mmcl.errors import UserError
from mmcl.files import ranges, remote, web
from mmcl.files import remote_filesystem as servers
from mmcl.files.remote import Copies, RemoteFile

Answer = Callable[[str], Iterator[bytes]]
PIECE = b"\0" * 2**16
ENOUGH = 2**25
"""Bytes that a server sends of an endless body; a client that reads them all has no bound."""


class Hostile(socketserver.ThreadingTCPServer):
    """Answers a request (its head) with whatever `answer` yields, and counts the bytes that somebody took."""

    daemon_threads = allow_reuse_address = True
    answer: Answer
    sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a.tar"


class _Handler(socketserver.BaseRequestHandler):
    server: Hostile

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (got := self.request.recv(2**16)):
            head += got
        try:
            for piece in self.server.answer(head.decode()) if head else ():
                self.request.sendall(piece)
                self.server.sent += len(piece)
        except OSError:  # the client has closed the connection
            pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(servers, "PAUSE", 0.001)
    monkeypatch.setattr(servers, "ATTEMPTS", 2)
    with Hostile(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def endless() -> Iterator[bytes]:
    for _ in range(ENOUGH // len(PIECE)):
        yield PIECE


def part(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Range="bytes 100-199/1000", Content_Length=100) + bytes(range(100))


def unbounded(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Range="bytes 100-199/1000")
    yield from endless()


def without_range(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content")
    yield from endless()


def chunked(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Transfer_Encoding="chunked")
    for piece in endless():
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def longer_than_asked(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Length=ENOUGH)
    yield from endless()


def compressed(_: str) -> Iterator[bytes]:
    body = gzip.compress(bytes(ENOUGH))
    yield head("206 Partial Content", Content_Encoding="gzip", Content_Length=len(body)) + body


def another_part(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Range="bytes 0-99/1000", Content_Length=100) + bytes(100)


def short(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Length=50) + bytes(50)


def cut(_: str) -> Iterator[bytes]:
    yield head("206 Partial Content", Content_Length=100) + bytes(50)


def redirected(_: str) -> Iterator[bytes]:
    yield head("302 Found", Location="/again", Content_Length=0)


def to_a_file(_: str) -> Iterator[bytes]:
    yield head("302 Found", Location="file:///etc/passwd", Content_Length=0)


def everything(_: str) -> Iterator[bytes]:
    yield head("200 OK", Content_Length=ENOUGH)
    yield from endless()


def nothing(_: str) -> Iterator[bytes]:
    yield b""


def garbage(_: str) -> Iterator[bytes]:
    yield b"\x1b]52;c;AAAA\x07" * 100 + b"\r\n\r\n"


def large_head(_: str) -> Iterator[bytes]:
    yield b"HTTP/1.1 206 Partial Content\r\n"
    for number in range(ENOUGH // 1000):
        yield b"X-%d: %b\r\n" % (number, b"a" * 990)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (unbounded, "sent more than was asked for"),
        (without_range, "sent more than was asked for"),
        (chunked, "sent more than was asked for"),
        (longer_than_asked, "sent more than was asked for"),
        (compressed, r"compresses it \(gzip\)"),
        (another_part, r"another part \(bytes 0-99/1000\)"),
        (short, "sent 50 of 100 bytes"),
        (cut, "the connection failed"),
        (redirected, "the connection failed"),
        (to_a_file, "the connection failed"),
        (everything, "does not support HTTP ranges"),
        (nothing, "the connection failed"),
        (garbage, "the server answers 400|the connection failed"),
        (large_head, "the server answers 400|the connection failed"),
    ],
)
def test_no_more_is_read_than_was_asked_for(answer: Answer, message: str, server: Hostile, tmp_path: Path) -> None:
    server.answer = answer
    file = RemoteFile(server.url, 1000, "", Copies(tmp_path / "remote", 10**6))
    with pytest.raises(UserError, match=message) as error:
        file.read(100, 100)
    assert "\x1b" not in str(error.value)
    assert server.sent < ENOUGH // 2, "what lies in the buffers of the system, and no more"


SERVICES: dict[str, tuple[str, str, Callable[[str], dict[str, object]]]] = {
    "s3": ("s3://bucket/a.tar", "s3fs", lambda url: {"endpoint_url": url, "anon": True}),
    "gs": ("gs://bucket/a.tar", "gcsfs", lambda url: {"endpoint_url": url, "token": "anon"}),
    "hf": ("hf://datasets/a/b/a.tar", "huggingface_hub", lambda url: {"endpoint": url, "token": False}),
}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (part, None),
        (unbounded, "sent more than was asked for|another part"),
        (chunked, "sent more than was asked for"),
        (longer_than_asked, "sent more than was asked for"),
        (compressed, "compresses it|sent more than was asked for"),
        (another_part, r"another part \(bytes 0-99/1000\)"),
        (everything, "a.tar$|sent more than was asked for"),
    ],
)
@pytest.mark.parametrize("service", SERVICES)
def test_no_more_is_read_of_the_answer_of_a_service(
    service: str, answer: Answer, message: str | None, server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked through the service's own library, which reads whatever comes."""
    path, library, settings = SERVICES[service]
    pytest.importorskip(library)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for protocol in (service, "gcs"):
        monkeypatch.setitem(fsspec.config.conf, protocol, settings(server.url.rpartition("/")[0]))

    def answer_or_describe(request: str) -> Iterator[bytes]:
        if "\r\nrange: " in request.lower():
            yield from answer(request)
            return
        file = {"type": "file", "path": "a.tar", "size": 1000, "oid": "1" * 40}
        body = json.dumps([file] if "/tree/" in request else {"id": "a/b", "sha": "0" * 40, "siblings": []}).encode()
        yield head("200 OK", Content_Length=len(body), Content_Type="application/json") + body

    server.answer = answer_or_describe
    if message is None:
        assert ranges.read_range(path, 100, 100, {}) == bytes(range(100))
        return
    with pytest.raises(UserError, match=message):
        ranges.read_range(path, 100, 100, {})
    assert server.sent < ENOUGH // 2


@pytest.mark.parametrize(
    ("length", "message"), [(ENOUGH, "sent more than was asked for"), (1000, None), (500, "sent 500 of 1000 bytes")]
)
def test_a_whole_file_is_no_longer_than_it_was_said_to_be(
    length: int, message: str | None, server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: str) -> Iterator[bytes]:
        is_head = request.startswith("HEAD")
        yield head("200 OK", Content_Length=1000) if is_head else head("200 OK")
        for start in range(0, 0 if is_head else length, len(PIECE)):
            yield PIECE[: length - start]

    monkeypatch.setattr(remote, "PIECE", 300)
    server.answer = answer
    file = RemoteFile.find(server.url, Copies(tmp_path / "remote", 10**6))
    if message is None:
        assert file.local().read_bytes() == bytes(1000)
        return
    with pytest.raises(UserError, match=message):
        file.local()
    assert server.sent < ENOUGH // 2
    assert not list((tmp_path / "remote").glob("*-a.tar"))


@pytest.mark.parametrize("where", ["body", "head"])
def test_a_server_that_trickles_is_given_up(
    where: str, server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: str) -> Iterator[bytes]:
        yield head("206 Partial Content", Content_Length=100) if where == "body" else b"HTTP/1.1 206 Partial Content\r\nX: "
        for _ in range(100):
            time.sleep(0.05)
            yield b"2"

    monkeypatch.setattr(web, "PATIENCE", 0.2)
    server.answer = answer
    started = time.monotonic()
    calls: list[Callable[[], object]] = [lambda: RemoteFile(server.url, 1000, "", Copies(tmp_path, 0)).read(100, 100)]
    if where == "head":
        calls.append(lambda: RemoteFile.find(server.url, Copies(tmp_path, 0)))
    for call in calls:
        with pytest.raises(UserError, match=r"the connection failed \(TimeoutError\)"):
            call()
    assert time.monotonic() - started < 4, "of 5 seconds for each attempt"


@pytest.mark.parametrize("size", ["-5", "1e18", "abc", "99999999999999999999999999", "5, 6"])
def test_an_invalid_size_is_refused(size: str, server: Hostile, tmp_path: Path) -> None:
    def answer(request: str) -> Iterator[bytes]:
        yield head("200 OK", Content_Range=f"bytes 0-0/{size}")

    server.answer = answer
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1.*a\.tar: "):
        RemoteFile.find(server.url, Copies(tmp_path / "remote", 10**6)).local()


def test_a_copy_that_the_disk_cannot_take_is_refused_before_others_are_deleted(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: str) -> Iterator[bytes]:
        yield head("200 OK", Content_Length=10**18)

    server.answer = answer
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "another").write_bytes(b"0")
    for limit, message in ((10**9, "copies may take 1.0: raise `cache_gb`"), (10**19, "the disk of .* has room for")):
        with pytest.raises(UserError, match=rf"a\.tar: has 1,000,000,000\.0 GB, and {message}"):
            RemoteFile.find(server.url, Copies(tmp_path / "remote", limit)).local()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=99))
    with pytest.raises(UserError, match=r"a\.tar: has 0\.0 GB, and the disk"):
        RemoteFile(server.url, 101, "", Copies(tmp_path / "remote", 10**6)).local()
    assert (tmp_path / "remote" / "another").exists()


def test_a_list_of_names_of_many_gigabytes_is_not_fetched(server: Hostile, tmp_path: Path) -> None:
    def answer(request: str) -> Iterator[bytes]:
        yield head("200 OK", Content_Length=5 * 10**9)

    server.answer = answer
    with pytest.raises(UserError, match=r"/classnames\.txt: 5000000000 bytes are too many"):
        RemoteFile(server.url, 100, "", Copies(tmp_path / "remote", 10**11)).nearby("classnames.txt")


def test_a_table_on_such_a_server(server: Hostile, tmp_path: Path) -> None:
    server.answer = lambda request: iter([head("200 OK", Content_Length=100)]) if "HEAD" in request else unbounded(request)
    with pytest.raises(UserError, match="the server sent another part"):
        open_source("table", server.url.replace(".tar", ".parquet"), str(tmp_path))
