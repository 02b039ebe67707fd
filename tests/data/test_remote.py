"""Files on servers give the same samples as local files despite connection faults; errors never contain secrets."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmcl.data.open import guess_source, open_source
from mmcl.errors import UserError
from mmcl.files import remote
from mmcl.files import remote_filesystem as servers
from mmcl.files.byte_range import FilePart
from mmcl.files.remote import Copies, RemoteFile
from mmcl.files.remote_filesystem import is_url
from tests.data.files import decoded
from tests.data.servers import Server, serve
from tests.data.tars import pairs, write_tar


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(servers, "PAUSE", 0.001)
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path / "remote", 10**6)


def content(size: int = 1000) -> bytes:
    return bytes(number * 7 % 251 for number in range(size))


def write(server: Server, name: str, data: bytes) -> str:
    (server.folder / name).write_bytes(data)
    return f"{server.url}/{name}"


class TestUrls:
    def test_local_paths_are_not_urls(self) -> None:
        for path in ("a.tar", "/data/{0..9}.tar", "a:b.csv", "a/b://c.csv"):
            assert not is_url(path)
        for scheme in ("http", "https", "s3", "gs", "hf"):
            assert is_url(f"{scheme}://place/a.tar")
        assert is_url("hf://datasets/someone/something@main/a.tar"), "a revision is not a user"

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("pipe:cat secret.tar", "pipe: is a shell command"),
            ("file:///etc/a.tar", "scheme file:// is not read; choose one of http"),
            ("ftp://host/a.tar", "scheme ftp://"),
            ("https://user:secret@host/a.tar", "a URL of host has a user"),
            ("s3://key:secret@bucket/a.tar", "a URL of bucket has a user"),
            ("https://host/a.tar?X-Amz-Signature=secret", "a URL of host has a user, a query"),
            ("https://host/a.tar#secret", "fragment"),
        ],
    )
    @pytest.mark.parametrize("name", ["auto", "webdataset", "table"])
    def test_what_is_not_read(self, name: str, path: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message) as error:
            open_source(name, path, str(tmp_path))
        assert "secret" not in str(error.value).replace("secrets", "")

    def test_the_source_is_guessed_by_the_suffix(self) -> None:
        assert guess_source("s3://bucket/{0..9}.tar") == "webdataset"
        assert guess_source("https://host/pairs.parquet") == "table"
        with pytest.raises(UserError, match="is neither a table nor a shard"):
            guess_source("https://host/images/")


class TestFiles:
    def test_parts_are_asked_for_by_range(self, server: Server, copies: Copies) -> None:
        file = RemoteFile.find(write(server, "a", content()), copies)
        assert FilePart(file, 10, 20).read() == content()[10:30]
        assert FilePart(file, 0, 1000).read() == content()
        assert server.requests() == [("/a", "bytes=10-29"), ("/a", "bytes=0-999")]
        assert not copies.folder.exists()

    def test_a_whole_copy_is_made_once_and_read_from_then_on(
        self, server: Server, copies: Copies, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PIECE", 300)
        file = RemoteFile.find(write(server, "a.tar", content()), copies)
        assert file.local().read_bytes() == content()
        assert [wanted for _, wanted in server.requests()] == [f"bytes={a}-{min(a + 299, 999)}" for a in (0, 300, 600, 900)]
        assert file.local().name.endswith("-a.tar")
        assert file.read(5, 5) == content()[5:10]
        assert len(server.requests()) == 4

    def test_dropped_connections_lose_nothing_and_double_nothing(
        self, server: Server, copies: Copies, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PIECE", 300)
        file = RemoteFile.find(write(server, "a", content()), copies)
        server.drop = 3
        assert file.read(100, 500) == content()[100:600]
        server.drop, server.refuse = 2, 2
        assert file.local().read_bytes() == content()

    def test_patience_ends(self, server: Server, copies: Copies) -> None:
        file = RemoteFile.find(write(server, "a", content()), copies)
        server.drop = 1000
        with pytest.raises(UserError, match=r"/a: cannot be read: the connection failed \(ContentLengthError\)"):
            file.read(0, 10)
        assert len(server.requests()) == servers.ATTEMPTS
        server.drop, server.refuse = 0, 1000
        for call in (lambda: file.read(0, 10), lambda: RemoteFile.find(file.path, copies), file.local):
            with pytest.raises(UserError, match=r"/a: cannot be read: the server answers 503"):
                call()

    def test_a_file_that_is_not_there_is_not_asked_for_again(self, server: Server, copies: Copies) -> None:
        with pytest.raises(UserError, match="/nowhere: cannot be read: no such file"):
            RemoteFile.find(f"{server.url}/nowhere", copies)
        assert len(server.log) == 2, "fsspec asks by HEAD and by GET"

    @pytest.mark.parametrize("etags", [True, False])
    def test_a_changed_file_is_named(self, etags: bool, server: Server, copies: Copies) -> None:
        server.etags = etags
        url = write(server, "a", content())
        file = RemoteFile.find(url, copies)
        again = time.time() + 10
        write(server, "a", content()[::-1])
        os.utime(server.folder / "a", (again, again))
        assert RemoteFile.find(url, copies) != file
        for call in (lambda: file.read(0, 10), file.local):
            with pytest.raises(UserError, match="has changed since it was indexed; start again"):
                call()
        assert list(copies.folder.glob("*-a")) == []

    def test_a_file_that_changes_while_it_is_copied_is_not_kept(
        self, server: Server, copies: Copies, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.ranges = False  # so that only the whole file is requested, without a condition
        monkeypatch.setattr(remote, "PIECE", 300)
        file = RemoteFile.find(write(server, "a", content()), copies)
        write(server, "a", content()[::-1])
        monkeypatch.setattr(RemoteFile, "_condition", lambda self: {})
        with pytest.raises(UserError, match="has changed since it was indexed"):
            file.local()
        assert list(copies.folder.glob("*-a")) == []

    def test_a_short_file_is_named(self, server: Server, copies: Copies) -> None:
        server.etags = False
        url = write(server, "a", content())
        file, written = RemoteFile.find(url, copies), (server.folder / "a").stat().st_mtime
        write(server, "a", content(400))
        os.utime(server.folder / "a", (written, written))  # all that such a server tells is the second
        with pytest.raises(UserError, match="the server sent 100 of 200 bytes"):
            file.read(300, 200)
        with pytest.raises(UserError, match="the server sent 0 of 200 bytes"):
            file.read(500, 200)

    def test_without_ranges_a_file_is_copied_at_once(
        self, server: Server, copies: Copies, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "PIECE", 300)
        server.ranges = False
        file = RemoteFile.find(write(server, "a", content()), copies)
        with pytest.raises(UserError, match=r"the server does not support HTTP ranges, .*raise `cache_gb`"):
            file.read(10, 20)
        server.drop = 3
        assert file.local().read_bytes() == content()
        assert file.read(10, 20) == content()[10:30]

    def test_the_least_recently_used_copies_go(self, server: Server, tmp_path: Path) -> None:
        copies = Copies(tmp_path / "remote", 2500)
        a, b, c = (RemoteFile.find(write(server, name, content()), copies) for name in "abc")
        for file in (a, b):
            file.local()
        time.sleep(0.02)
        a.read(0, 1)
        c.local()
        assert sorted(file.name[-2:] for file in copies.folder.glob("*-?")) == ["-a", "-c"]
        assert b.read(3, 4) == content()[3:7], "by range"
        small = Copies(tmp_path / "remote", 10)
        assert RemoteFile.find(a.path, small).local().read_bytes() == content(), "the newest is kept"
        RemoteFile.find(b.path, small).local()
        assert [file.name[-2:] for file in copies.folder.glob("*-?")] == ["-b"]

    def test_a_forked_process_reads_too(self, server: Server, copies: Copies) -> None:
        file = RemoteFile.find(write(server, "a", content()), copies)
        assert file.read(0, 4) == content()[:4]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(file.read, [(start, 5) for start in range(0, 100, 5)], 1) == [
                content()[start : start + 5] for start in range(0, 100, 5)
            ]


class TestSources:
    def test_shards_are_what_they_are_on_the_disk(self, server: Server, tmp_path: Path) -> None:
        for number in range(3):
            members = {**pairs(4 * number, 4 * number + 4), f"{4 * number:04}.cls": b"1"}
            write_tar(server.folder / "test" / f"{number}.tar", members)
        (server.folder / "classnames.txt").write_text("cat\ndog\n")
        local = open_source("auto", str(server.folder / "test"), str(tmp_path / "local"))
        for cache_gb in (1, 0):  # All copies stay, and none.
            args = {"cache_gb": cache_gb}
            source = open_source("auto", f"{server.url}/test/{{0..2}}.tar", str(tmp_path / f"root {cache_gb}"), args)
            server.log.clear()
            server.drop = 2
            pictures = [decoded(source[index]).getpixel((0, 0)) for index in range(12)]
            assert pictures == list(range(12))
            assert len(server.requests()) == (0 if cache_gb else 12 + 2)
            server.drop = 0
            assert [source[index].captions for index in range(12)] == [local[index].captions for index in range(12)]
            assert (source.fingerprint, source.class_names) == (local.fingerprint, local.class_names)
            assert source[5].name == f"{server.url}/test/1.tar, 0005"

    def test_an_index_lasts_until_the_shard_changes(self, server: Server, tmp_path: Path) -> None:
        write_tar(server.folder / "a.tar", pairs(0, 4))
        given = ("webdataset", f"{server.url}/a.tar", str(tmp_path / "root"))
        first = open_source(*given)
        server.log.clear()
        assert open_source(*given)[3] == first[3]
        assert server.requests("GET") == [("/classnames.txt", None), ("/zeroshot_classification_templates.txt", None)]
        write_tar(server.folder / "a.tar", pairs(0, 5))
        assert len(open_source(*given)) == 5

    def test_a_missing_shard(self, server: Server, tmp_path: Path) -> None:
        write_tar(server.folder / "0.tar", pairs(0, 1))
        with pytest.raises(UserError, match=r"/1\.tar: cannot be read: no such file"):
            open_source("webdataset", f"{server.url}/{{0..2}}.tar", str(tmp_path))
        with pytest.raises(UserError, match="a web server does not list files"):
            open_source("webdataset", f"{server.url}/*.tar", str(tmp_path))

    def test_tables(self, server: Server, tmp_path: Path) -> None:
        url = write(server, "pairs.csv", b"image,caption,label\na.png,one,x\nb.png,two,y\n")
        with pytest.raises(UserError, match=r"names its images by path .*; set `image_root`"):
            open_source("auto", url, str(tmp_path))
        source = open_source("auto", url, str(tmp_path), {"image_root": "/images"})
        assert source[1].image == "/images/b.png"
        assert source.fingerprint == open_source("table", url, str(tmp_path), {"image_root": "/images"}).fingerprint
        assert server.requests("GET") == [("/pairs.csv", "bytes=0-43")]
        with pytest.raises(UserError, match=rf"{server.url}/pairs.csv: no column 'text'"):
            open_source("table", url, str(tmp_path), {"caption_column": "text"})


class Failure(Exception):
    """What libraries raise: the status is the error's, or that of its response; the words hold a secret."""

    def __init__(self, status: int | None, of_response: bool = False):
        super().__init__("https://host/a?signature=secret")
        if of_response:
            self.response = SimpleNamespace(status_code=status)
        else:
            self.status = status


@pytest.mark.parametrize("of_response", [False, True])
@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (403, 1), (404, 1), (429, 8), (408, 8), (500, 8), (None, 8)])
def test_permanent_errors_are_not_retried(
    status: int | None, attempts: int, of_response: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "PAUSE", 0)
    calls = []

    def call() -> None:
        calls.append(1)
        raise Failure(status, of_response)

    with pytest.raises(UserError, match="s3://b/a: cannot be read: ") as error:
        servers.with_retries(call, "s3://b/a")
    assert len(calls) == attempts
    assert "secret" not in str(error.value)
    assert error.value.__suppress_context__


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"http:// cannot be read without another package: pip install 'mmcl\[remote\]'"):
        open_source("table", "http://127.0.0.1:9/a.csv", str(tmp_path))
