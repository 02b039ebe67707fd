"""What is checked of every request before anything else sees it, and the headers of every answer.

The page is for the person at this machine. Another site in the same browser can send requests here, too, so:

- the Host must be one of ours: a foreign name that resolves to this machine (DNS rebinding) is refused with 421;
- what a browser marks as coming from another site is refused with 403, and so is whatever is not a GET without the header
  `x-mmcl`, which no other site may send without asking first (CORS), and it is never allowed to;
- without the session's cookie only the empty page is given;
- a body has a length, known before it is read, of at most 20 MiB.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 20 * 2**20
BODY_SECONDS = 30.0
"""How long the next piece of a body may take."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_OWN = ("127.0.0.1", "localhost", "::1")


class Session:
    """Exchanges the token that `mmcl serve` prints for a cookie.

    The token stands in the fragment of the link, which browsers do not send. The cookie holds another secret, because cookies
    are sent to all ports of a machine.

    Args:
        token: what must be given; None lets everybody in.
        port: port of the server, for the cookie's name.
    """

    def __init__(self, token: str | None, port: int):
        self._token, self._name = token, f"mmcl-{port}"
        self._secret = secrets.token_urlsafe(32)

    def cookie_for(self, token: str) -> str | None:
        """Returns the value of Set-Cookie for a token; None for a wrong one."""
        if self._token is None or not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            return None
        return f"{self._name}={self._secret}; Path=/; HttpOnly; SameSite=Strict"

    def is_open(self, cookies: str) -> bool:
        """True if a Cookie header has the session's, or none is needed."""
        if self._token is None:
            return True
        try:
            given = SimpleCookie(cookies).get(self._name)
        except CookieError:
            return False
        return given is not None and hmac.compare_digest(given.value.encode("utf-8", "replace"), self._secret.encode())


class Guard:
    """Checks requests for an ASGI application, and adds the headers of `HEADERS` to its answers.

    Args:
        app: the application.
        session: who may ask.
        host: address that the server listens at; beside it, the names of this machine are allowed.
        names: further names that requests may call it.
        session_path: path that is open to everybody, where a token is exchanged.
        api: prefix of the paths that need the session.
    """

    def __init__(
        self, app: App, session: Session, *, host: str, names: Iterable[str] = (), session_path: str, api: str = "/api/"
    ):
        self._app, self._session = app, session
        self._names = {name.lower() for name in (*_OWN, host, *names)}
        # A page whose host is an address was not found through a name, so nobody can have redirected it.
        self._any_address = host not in _OWN
        self._session_path, self._api = session_path, api

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request; see ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers: dict[str, str] = {}
            for name, value in scope["headers"]:
                headers[name.decode("latin-1")] = value.decode("latin-1")
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await _refuse(send, *refusal)
                return
            await self._app(scope, _in_time(receive), _with_headers(send))
        # Nothing here speaks WebSocket: the server answers 403 if nobody accepts.

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, if a request is refused."""
        host, path, is_read = headers.get("host", ""), scope["path"], scope["method"] in ("GET", "HEAD")
        if not self._is_ours(host):
            return 421, "this host is not served here; open the link that mmcl serve printed"
        asks = path.startswith(self._api)
        if not is_read or asks:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, "the request comes from another site"
            if site is not None and site not in ("same-origin", "none"):
                return 403, "the request comes from another site"
        if not is_read:
            if headers.get("x-mmcl") != "1":
                return 403, "the header x-mmcl: 1 is missing"
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY or "transfer-encoding" in headers:
                return 413, f"a body needs a content-length of at most {MAX_BODY} bytes"
        if asks and path != self._session_path and not self._session.is_open(headers.get("cookie", "")):
            return 401, "open the link that mmcl serve printed: it has a token"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        return self._any_address and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _in_time(receive: Receive) -> Receive:
    """A client that sends its body slowly is given up. Behind the body, one waits for the client to leave, however long."""
    is_whole = False

    async def received() -> Message:
        nonlocal is_whole
        try:
            message = await asyncio.wait_for(receive(), None if is_whole else BODY_SECONDS)
        except TimeoutError:
            message = {"type": "http.disconnect"}
        is_whole = is_whole or not message.get("more_body", False)
        return message

    return received


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    answer = _with_headers(send)
    await answer({"type": "http.response.start", "status": status, "headers": headers})
    await answer({"type": "http.response.body", "body": body})
