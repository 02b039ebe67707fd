"""Requests to untrusted web servers: responses are limited to the requested size and to the time of a slow connection, and are
not decompressed.

fsspec reads the whole body of a response, however long, so only its session is used here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mmcl.errors import UserError
from mmcl.files.remote_filesystem import WEB_HEADERS, RefusedError

if TYPE_CHECKING:
    from aiohttp import ClientResponse

T = TypeVar("T")

PATIENCE = 60.0
"""Timeout in seconds until a response begins, including redirects."""
SLOWEST = 2**14
"""Minimum transfer rate in bytes per second; slower transfers are aborted."""
_CHUNK = 2**16


class NoRangesError(UserError):
    """The server sent the whole file in response to a range request."""


def describe(files: Any, url: str) -> dict[str, Any]:
    """Returns fsspec's `info` of a URL within `PATIENCE` seconds. Raises what fsspec and aiohttp raise."""
    return within(files, files._info(url), 0)


def read_part(files: Any, url: str, offset: int, size: int, headers: Mapping[str, str], *, name: str) -> bytes:
    """Reads `size` bytes of a file, fewer at its end.

    Args:
        files: fsspec's HTTP file system.
        headers: request headers besides the range, such as conditions or authorisation.
        name: name of the file in error messages.

    Raises:
        NoRangesError: the server sends the whole file instead of the range.
        RefusedError: the server sends more than requested, another range, or a compressed body.
        Exception: any other error of aiohttp.
    """
    content = bytearray()
    asked = {**headers, **WEB_HEADERS, "Range": f"bytes={offset}-{offset + size - 1}"}

    def check(answer: ClientResponse) -> None:
        if answer.status == 206:
            check_range(answer.headers.get("Content-Range"), offset, name)
        elif offset > 0:
            raise NoRangesError(name)

    async def read() -> None:
        async with (await files.set_session()).get(files.encode_url(url), headers=asked) as answer:
            if answer.status != 416:  # 416: the range starts beyond the end of the file
                await _receive(answer, name, size, check, content.extend)

    within(files, read(), size)
    return bytes(content)


def check_range(said: str | None, offset: int, name: str) -> None:
    """Raises RefusedError if the response states another start offset."""
    if said is not None and not said.startswith(f"bytes {offset}-"):
        raise RefusedError(f"{name}: cannot be read: the server sent another part ({said[:80]})")


def read_whole(
    files: Any, url: str, size: int, headers: Mapping[str, str], write: Callable[[bytes], Any], *, name: str
) -> None:
    """Passes a file of `size` bytes to `write` in chunks. Raises as `read_part` does."""

    async def read() -> None:
        async with (await files.set_session()).get(files.encode_url(url), headers={**headers, **WEB_HEADERS}) as answer:
            await _receive(answer, name, size, lambda _: None, write)

    within(files, read(), size)


async def _receive(
    answer: ClientResponse, name: str, size: int, check: Callable[[ClientResponse], None], write: Callable[[bytes], Any]
) -> None:
    answer.raise_for_status()
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding not in ("identity", ""):
        raise RefusedError(f"{name}: cannot be read: the server compresses it ({encoding[:20]}) where it was asked not to")
    check(answer)
    is_prefix = answer.status == 200 and "Range" in answer.request_info.headers
    async for piece in answer.content.iter_chunked(_CHUNK):
        write(piece[:size])
        size -= len(piece)
        if size <= 0 and is_prefix:
            return
        if size < 0:
            raise RefusedError(f"{name}: cannot be read: the server sent more than was asked for")


def within(files: Any, work: Coroutine[Any, Any, T], size: int) -> T:
    """Returns the result of a coroutine run in fsspec's event-loop thread; aborts after the time that a slow connection takes
    for a response of `size` bytes."""
    from fsspec.asyn import sync

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE + size / SLOWEST):
            return await work

    result: T = sync(files.loop, bounded)
    return result
