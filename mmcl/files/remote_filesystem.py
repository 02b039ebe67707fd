"""Remote access through fsspec, with retries and without printing secrets.

Dropped connections are retried. Secrets are neither printed nor stored: credentials and endpoints come from where the library
of each service looks for them (environment variables, ~/.aws, ~/.netrc, a login), never from a URL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mmcl.errors import UserError, how_to_install

T = TypeVar("T")

SCHEMES = ("http", "https", "s3", "gs", "hf")
ATTEMPTS = 8
PAUSE = 0.25
"""Seconds before the first retry; doubles with every retry, up to half a minute in total."""
WEB_HEADERS = {"Accept-Encoding": "identity"}
"""Offsets refer to the file itself, not to a compressed form of it."""
_REFUSALS = set(range(400, 500)) - {408, 425, 429}
"""HTTP status codes that a retry will not change; the exceptions are timeout, too early and too many requests."""


def is_url(path: str) -> bool:
    """True if a path is a URL.

    Raises:
        UserError: the URL is not supported: an unknown scheme, a shell command, or a URL that may contain a secret.
    """
    if path.startswith("pipe:"):
        raise UserError("a path that starts with pipe: is a shell command, which is never run; give the URL itself")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return False
    parts = urlsplit(path)
    if parts.scheme not in SCHEMES:
        raise UserError(f"a URL of scheme {parts.scheme}:// is not read; choose one of {', '.join(SCHEMES)}, or copy the files")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"a URL of {parts.hostname} has a user, a query (?) or a fragment (#): these may hold secrets, and paths are "
            "written to configurations and logs; give the plain URL, and credentials by the environment or ~/.netrc"
        )
    return True


def find_matches(pattern: str) -> list[str]:
    """Returns the URLs that match a pattern with *; may be empty. Raises UserError if the server does not list its files."""
    scheme = urlsplit(pattern).scheme
    if scheme in ("http", "https"):
        raise UserError(f'{pattern}: a web server does not list files; name them, as in "{{00000..00099}}.tar"')
    return [f"{scheme}://{name}" for name in with_retries(lambda: filesystem(scheme).glob(pattern), pattern)]


class RefusedError(UserError):
    """The server does not have the file or refuses access; retrying does not help."""


def changed(url: str) -> UserError:
    """Returns the error for a file that has changed since it was indexed."""
    return UserError(f"{url}: has changed since it was indexed; start again")


def filesystem(scheme: str) -> Any:
    """Returns fsspec's file system for a scheme; fsspec keeps one per thread and process."""
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, **_web_options() if scheme in ("http", "https") else {})
    except ImportError as error:
        how = "pip install gcsfs" if scheme == "gs" else how_to_install("remote")
        raise UserError(f"{scheme}:// cannot be read without another package: {how}") from error


@lru_cache(maxsize=1)
def _web_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # No timeout for the whole response, since files are large; `trust_env` enables proxies and ~/.netrc.
    client = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60), "trust_env": True}
    return {"client_kwargs": client | {"auto_decompress": False}, "headers": WEB_HEADERS}


def with_retries(call: Callable[[], T], url: str) -> T:
    """Returns the result of a call to a server; transient errors are retried.

    Raises:
        RefusedError: the server does not have the file or refuses access.
        UserError: the file has changed, or every attempt failed. Omits library messages, which may contain signed URLs.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # aiohttp, botocore, huggingface_hub, ...: each has its own exception types.
            # fsspec's HTTP turns every failure of `info` into a missing file, with the actual error as its cause.
            cause = (url.startswith("http") and error.__cause__) or error
            status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
            if status == 412:
                raise changed(url) from None
            message = f"{url}: cannot be read: {_reason(cause, status)}"
            if isinstance(cause, FileNotFoundError | PermissionError) or status in _REFUSALS:
                raise RefusedError(message) from None
            if attempt == ATTEMPTS - 1:
                raise UserError(message) from None
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _reason(error: BaseException, status: int | None) -> str:
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if isinstance(error, EOFError):
        return str(error)
    if status:
        return f"the server answers {status}"
    return getattr(error, "strerror", None) or f"the connection failed ({type(error).__name__})"
