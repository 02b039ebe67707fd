"""Bounded range requests to any server: at most the requested bytes of a response are read.

fsspec and its backends read the whole body of a response, however long. So services with an HTTP interface are accessed as web
servers, with the address and headers from their library; for s3, the library's own response is read in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from mmcl.files import web
from mmcl.files.remote_filesystem import RefusedError, filesystem


def read_range(url: str, offset: int, size: int, conditions: Mapping[str, str]) -> bytes:
    """Reads `size` bytes of a file, fewer at its end.

    Args:
        conditions: request headers that make a web server refuse another version of the file.

    Raises:
        NoRangesError: the server sends the whole file instead of the range.
        RefusedError: the server sends more than requested, another range, or a compressed body.
        Exception: any other error of the service's library.
    """
    if urlsplit(url).scheme == "s3":
        files = filesystem("s3")
        return web.within(files, _from_s3(files, url, offset, size), size)
    address, headers = _address(url)
    return web.read_part(filesystem("https"), address, offset, size, {**headers, **conditions}, name=url)


def read_whole(url: str, size: int, write: Callable[[bytes], Any]) -> None:
    """Passes a file of `size` bytes to `write` in chunks, for servers without range requests. Raises as `read_range` does."""
    address, headers = _address(url)
    web.read_whole(filesystem("https"), address, size, headers, write, name=url)


async def _from_s3(files: Any, url: str, offset: int, size: int) -> bytes:
    bucket, key, version = files.split_path(url)
    asked = {"Range": f"bytes={offset}-{offset + size - 1}"} | ({"VersionId": version} if version else {})
    answer = await files._call_s3("get_object", Bucket=bucket, Key=key, **asked)
    body, content = answer["Body"], bytearray()
    try:
        web.check_range(answer.get("ContentRange"), offset, url)
        while len(content) <= size and (piece := await body.read(size + 1 - len(content))):
            content += piece
    finally:
        body.close()
    if len(content) > size:
        raise RefusedError(f"{url}: cannot be read: the server sent more than was asked for")
    return bytes(content)


def _address(url: str) -> tuple[str, Mapping[str, str]]:
    """Returns a file's address on a web server and the required headers. Never print either: they may contain secrets."""
    scheme = urlsplit(url).scheme
    if scheme not in ("gs", "hf"):
        return url, {}
    files = filesystem(scheme)
    if scheme == "hf":
        from huggingface_hub.utils import build_hf_headers

        return files.url(url), build_hf_headers(token=files.token)
    headers: dict[str, str] = {}
    files.credentials.apply(headers)
    return files.url(url), headers
