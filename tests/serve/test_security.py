"""What another site, another user or a hostile file could ask for is refused; see the rules in `mmcl.serve.guard`."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmcl.errors import UserError
from mmcl.search import Index
from mmcl.serve import app as pages
from mmcl.serve import guard, running
from mmcl.serve.gallery import Gallery
from mmcl.serve.guard import HEADERS, MAX_BODY
from mmcl.serve.running import check_serve, listen
from mmcl.testing.patterns import PatternModel, pattern
from tests.security.test_images import _bomb
from tests.serve.server import Answer, Served, served

READ = ["/api/health", "/api/search?q=a", "/api/facets"]


def an_id(server: Served) -> str:
    return str(server.get("/api/search?k=1").json["rows"][0]["id"])


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::2]",
        "192.168.0.1",
        "a b",
    ],
)
@pytest.mark.parametrize("path", ["/", "/static/app.js", *READ])
def test_a_foreign_host_is_not_served(host: str, path: str, server: Served) -> None:
    """DNS rebinding: another site's name that resolves to this machine."""
    assert server.get(path, Host=host).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "LOCALHOST:1", "[::1]:8765"])
def test_own_hosts_are_served_also_through_a_tunnel(host: str, server: Served) -> None:
    assert server.get("/api/health", Host=host).status == 200


def test_another_address_needs_a_token() -> None:
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 lets other machines in, so a token is needed"):
        check_serve("0.0.0.0", 0, token=False)
    check_serve("127.0.0.1", 0, token=False)
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


FOREIGN = {
    "no header of ours": {"x_mmcl": ""},
    "another origin": {"Origin": "https://evil.example"},
    "an origin of nothing": {"Origin": "null"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "from another site": {"Sec_Fetch_Site": "cross-site"},
    "from another port": {"Sec_Fetch_Site": "same-site"},
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("path", ["/api/session", "/api/search", "/api/zeroshot", "/api/export", "/"])
def test_another_site_cannot_post(name: str, path: str, server: Served) -> None:
    assert server.post(path, {}, **FOREIGN[name]).status == 403


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "no header of ours"])
@pytest.mark.parametrize("path", READ)
def test_another_site_cannot_make_it_search(name: str, path: str, server: Served) -> None:
    assert server.get(path, **FOREIGN[name]).status == 403


def test_the_page_itself_may_ask(server: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec_Fetch_Site": "same-origin"}
    assert server.post("/api/zeroshot", {"labels": ["a", "b"]}, **own).status == 200
    assert server.get("/", Sec_Fetch_Site="cross-site").status == 200, "a link from a chat opens the page"


def test_no_other_site_may_read(server: Served) -> None:
    asked = server.ask("OPTIONS", "/api/search", None, Origin="https://evil.example", Access_Control_Request_Headers="x-mmcl")
    for answer in (asked, server.get("/api/health"), server.get("/")):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert asked.status == 403


def every_answer(server: Served) -> Iterator[Answer]:
    for path in ("/", "/static/app.js", "/api/health", f"/api/thumb/{an_id(server)}", "/nothing", "/api/search?k=0"):
        yield server.get(path)
    yield server.get("/", Host="evil.example")
    yield server.post("/api/zeroshot", {"labels": ["a"]})


def test_every_answer_has_the_headers(server: Served) -> None:
    for answer in every_answer(server):
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "server" not in answer.headers
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "*" not in policy


class TestToken:
    """Without the session, only the empty page is given."""

    @pytest.mark.parametrize("path", [*READ, "/api/item/0123456789abcdef", "/api/thumb/0123456789abcdef", "/api/nothing"])
    def test_without_it_nothing_is_shown(self, path: str, locked: Served) -> None:
        for cookie in (
            "",
            f"mmcl-{locked.port}={locked.token}",
            f"mmcl-{locked.port}=x",
            "\x00;=;",
            f"mmcl={locked.session()[5:]}",
        ):
            assert locked.get(path, **({"Cookie": cookie.replace(chr(0), "")} if cookie else {})).status == 401
        assert locked.get("/").status == locked.get("/static/app.js").status == 200

    def test_it_is_exchanged_for_a_cookie(self, locked: Served) -> None:
        answer = locked.post("/api/session", {"token": locked.token})
        cookie = answer.headers["set-cookie"]
        assert answer.status == 204
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert locked.token is not None
        assert locked.token not in cookie
        assert locked.get("/api/health", Cookie=f"other=1; {locked.session()}").status == 200

    @pytest.mark.parametrize("token", ["", "0123456789abcdef-_ABC", "é" * 22, "0123456789abcdef-_ABCDE"])
    def test_a_wrong_one_is_refused(self, token: str, locked: Served) -> None:
        answer = locked.post("/api/session", {"token": token})
        assert answer.status == 401
        assert "set-cookie" not in answer.headers

    def test_it_is_random_and_not_sent_by_a_browser(self, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
        links: list[str] = []
        monkeypatch.setattr(running, "run_server", lambda server, listening: None)
        for _ in range(2):
            running.serve(gallery, host="127.0.0.1", port=0, token=True, announce=links.append)
        tokens = {link.partition("/#token=")[2] for link in links}
        assert len(tokens) == 2
        assert all(len(token) >= 22 for token in tokens), "128 bits in base 64"


PATHS = [
    *("..", "%2e%2e", "%2e%2e%2fapp.py", "..%2fapp.py", "%2fetc%2fpasswd", "app.js%00", "%00", "app.js%2f..", "./app.js"),
    *("....//app.py", "..%5capp.py", "%c0%ae%c0%ae", "__init__.py", ""),
]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "place", ["/static/", "/api/thumb/", "/api/image/", "/api/item/", "/api/similar/", "/", "//etc/passwd/"]
)
def test_no_path_leads_to_a_file(place: str, name: str, server: Served) -> None:
    answer = server.get(place + name)
    if (place, name) != ("/", ""):
        assert answer.status in (400, 404, 405, 422)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body[:2000]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_there_is_no_page_of_documentation(path: str, server: Served) -> None:
    assert server.get(path).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(method: str, server: Served) -> None:
    for path in ("/", "/api/search", f"/api/item/{an_id(server)}", "/api/export", "/static/app.js"):
        assert server.ask(method, path, b"{}", x_mmcl="1").status == 405


class TestBodies:
    """A body is bounded before it is read, and files are judged by their headers."""

    def test_its_length_is_known_and_bounded(self, server: Served) -> None:
        form = {"x_mmcl": "1", "Content_Type": "multipart/form-data; boundary=x"}
        chunked = server.ask("POST", "/api/search", b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked", **form)
        assert chunked.status == 413
        for length in (MAX_BODY + 1, 10**18):
            assert (
                server.ask("POST", "/api/search", None, Content_Length=str(length), **form).status == 413
            )  # before a byte of it
        assert server.ask("POST", "/api/search", None, Content_Length="-1", **form).status in (400, 413)
        assert server.ask("POST", "/api/search", None, **form).status == 413

    def test_a_slow_one_is_given_up(self, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
        with served(gallery) as server, socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(
                b"POST /api/export HTTP/1.1\r\nHost: localhost\r\nx-mmcl: 1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert b" 200 " not in connection.recv(1000)

    def test_files_are_few(self, server: Served) -> None:
        one = png(Image.new("RGB", (8, 8)))
        assert server.post_form("/api/search", [one] * 8).status == 200
        assert server.post_form("/api/search", [one] * 9).status == 422

    @pytest.mark.parametrize("name", ["bomb", "svg", "html", "array", "cut off", "empty", "text", "pdf"])
    def test_what_is_no_image_is_refused(self, name: str, server: Served) -> None:
        array = io.BytesIO()
        np.save(array, np.zeros((8, 8, 3), np.uint8))
        file = {
            "bomb": _bomb(50_000, 50_000),
            "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
            "html": b"<!doctype html><script>alert(1)</script>",
            "array": array.getvalue(),
            "cut off": png(Image.effect_noise((64, 64), 50))[:-500],
            "empty": b"",
            "text": b"a cat",
            "pdf": b"%PDF-1.4",
        }[name]
        answer = server.post_form("/api/search", [file])
        assert answer.status == 422
        assert "picture 1" in answer.json["error"] or "image" in answer.json["error"]

    @pytest.mark.parametrize("body", [b"", b"--x", b"--x\r\n\r\n--x--", b"\0" * 100])
    def test_a_damaged_form_is_refused(self, body: bytes, server: Served) -> None:
        answer = server.ask("POST", "/api/search", body, x_mmcl="1", Content_Type="multipart/form-data; boundary=x")
        assert answer.status in (200, 422)  # an empty form asks for everything

    def test_other_bodies_are_refused(self, server: Served) -> None:
        assert server.post("/api/search", {"q": "a"}).status == 422
        assert server.ask("POST", "/api/export", b"{", x_mmcl="1", Content_Type="application/json").status == 422
        assert server.post("/api/export", {"ids": ["../../etc"]}).status == 422


def test_decoding_is_given_up_and_few_go_on_at_once(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(content: bytes, name: str) -> bytes:
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.3)
        with lock:
            running -= 1
        return content

    monkeypatch.setattr(pages, "check_upload", slow)
    monkeypatch.setattr(pages, "_DECODE_SECONDS", 0.1)
    one = png(Image.fromarray(pattern(0)))
    answers: list[Answer] = []
    with served(gallery) as server:
        threads = [threading.Thread(target=lambda: answers.append(server.post_form("/api/search", [one]))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {(answer.status, answer.json["error"]) for answer in answers} == {(422, "the image takes too long to decode")}
    assert most <= 2


def test_too_many_questions_are_asked_to_come_back(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(pages, "_WAITING", 2)
    monkeypatch.setattr(gallery, "about", lambda: {"free": free.wait(20)})
    answers: list[Answer] = []
    with served(gallery) as server:
        threads = [threading.Thread(target=lambda: answers.append(server.get("/api/health"))) for _ in range(5)]
        for thread in threads:
            thread.start()
        while sum(answer.status == 503 for answer in answers) < 3:
            time.sleep(0.01)
        free.set()
        for thread in threads:
            thread.join()
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
    assert next(answer for answer in answers if answer.status == 503).headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "query",
    [
        *(f"k={k}" for k in ("0", "501", "1e9", "1000000000", "nan", "-1", "", "1.5", "true")),
        *("offset=-1", "offset=10001", "offset=1e3", "min_match=nan", "min_match=inf", "min_match=2", "sort=name"),
        f"q={'a' * 1001}",
        f"q=a&negative={'a' * 1001}",
        "&".join(["q=a"] * 9),
        *("like=../../x", "like=0123456789ABCDEF", "like=0", "unknown=1", "where=1%3D1%20or"),
        *("where=taken+%3E%3D+2010-01-01%3B+drop+table+items", "where=width+%3E+1%29+or+%281%3D1", f"where={'(' * 900}"),
    ],
)
def test_a_value_out_of_bounds_is_refused(query: str, server: Served) -> None:
    answer = server.get(f"/api/search?{query}")
    assert answer.status == 422
    assert answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_characters_that_no_text_has_are_removed_or_refused(server: Served) -> None:
    rows = server.get("/api/search?q=a+ring&k=3").json["rows"]
    assert server.get("/api/search?q=a+%00ring%00&k=3").json["rows"] == rows
    plain = server.post("/api/zeroshot", {"labels": ["a ring", "a cross"]}).json
    assert server.post("/api/zeroshot", {"labels": ["a \0ring", "\0a cross"]}).json == plain
    assert server.post("/api/zeroshot", {"labels": ["a \ud800ring", "a cross"]}).status == 422
    assert server.post("/api/session", {"token": "\ud800"}).status == 422
    assert server.get("/api/search?q=%ff%fe&k=3").status == 200
    assert server.get("/api/search?q=%00&k=3").status == 200, "nothing is left: the whole collection"


def test_errors_name_ids_and_never_paths(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(pattern(number)).save(tmp_path / f"secret-{number}.png")
    index = Index.build(tmp_path, PatternModel())
    with served(Gallery(index.store, index.model, "photos")) as server:
        first, second, third = (row["id"] for row in server.get("/api/search").json["rows"])
        (tmp_path / "secret-0.png").unlink()
        (tmp_path / "secret-1.png").write_bytes(b"no image")
        answers = [server.get(f"/api/{kind}/{one}") for kind in ("thumb", "image") for one in (first, second)]
        answers += [server.get(f"/api/{kind}/{'0' * 16}") for kind in ("thumb", "image", "item", "similar")]
        answers += [server.post("/api/export", {"ids": ["0" * 16]})]
        assert server.get(f"/api/image/{third}").status == 200
    assert all(answer.status in (404, 422) for answer in answers)
    for answer in answers:
        assert str(tmp_path).encode() not in answer.body
        assert b"secret" not in answer.body
    assert first in answers[0].json["error"]


def test_an_image_is_encoded_anew(server: Served, folder: Path) -> None:
    """So nothing of the file's metadata leaves."""
    one = an_id(server)
    for kind in ("image", "thumb"):
        answer = server.get(f"/api/{kind}/{one}")
        assert answer.headers["content-type"] == "image/jpeg"
        found = Image.open(io.BytesIO(answer.body))
        assert found.format == "JPEG"
        assert not found.getexif()


def test_logs_hold_no_questions(server: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        assert server.get("/api/search?q=my+secret+wish").status == 200
        assert server.get("/api/search?q=my+secret+wish&k=0").status == 422
    printed = capfd.readouterr()
    text = caplog.text + printed.out + printed.err
    assert "secret" not in text


def test_a_bug_is_told_without_details(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("/home/secret")

    monkeypatch.setattr(gallery, "about", broken)
    with served(gallery) as server:
        answer = server.get("/api/health")
    assert (answer.status, answer.json) == (500, {"error": "this is a bug in mmcl; the terminal of the server shows it"})
    assert "secret" in caplog.text


_connected: list[Any] = []
_is_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _is_watching and event == "socket.connect":
        _connected.append(arguments[1])


def test_nothing_but_this_machine_is_connected_to(server: Served) -> None:
    global _is_watching
    sys.addaudithook(_watch)
    _is_watching = True
    try:
        for path in ("/", *READ, f"/api/image/{an_id(server)}", "/api/search?q=http://169.254.169.254/"):
            server.get(path)
        server.post("/api/export", {"ids": [an_id(server)]})
    finally:
        _is_watching = False
    assert {address[0] for address in _connected if isinstance(address, tuple)} == {"127.0.0.1"}


def test_fifty_clients_get_what_one_gets(server: Served) -> None:
    questions = [f"/api/search?q=a+ring&k={1 + number % 5}" for number in range(50)]
    expected = {path: server.get(path).json["rows"] for path in set(questions)}
    found: list[tuple[str, int, str]] = []

    def ask(path: str) -> None:
        for _ in range(4):
            answer = server.get(path)
            found.append((path, answer.status, json.dumps(answer.json.get("rows"))))

    threads = [threading.Thread(target=ask, args=(path,)) for path in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert {status for _, status, _ in found} == {200}
    assert all(rows == json.dumps(expected[path]) for path, _, rows in found)
