"""A range of a file on any server, of whose answer no more is read than was asked for.

fsspec and the libraries under it read the whole body of an answer, however long. So services that can be asked as web servers
are, with the address and the headers that their library gives; of s3, the library's own answer is read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from mmcl.files import web
from mmcl.files.remote_filesystem import RefusedError, filesystem


def read_range(url: str, offset: int, size: int, conditions: Mapping[str, str]) -> bytes:
    """`size` bytes of a file, fewer at its end.

    Args:
        conditions: headers by which a web server refuses to answer of another version.

    Raises:
        NoRangesError: the server gives everything instead.
        RefusedError: it sends more, another part, or something compressed.
        Exception: others, of the service's library.
    """
    if urlsplit(url).scheme == "s3":
        files = filesystem("s3")
        return web.within(files, _from_s3(files, url, offset, size), size)
    address, headers = _address(url)
    return web.read_part(filesystem("https"), address, offset, size, {**headers, **conditions}, name=url)


def read_whole(url: str, size: int, write: Callable[[bytes], Any]) -> None:
    """Sends a file of `size` bytes to `write`, in pieces, for servers that give no ranges. Raises as `read_range` does."""
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
    """Where a web server has a file, and the headers that open it. Neither is ever printed: they may hold secrets."""
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
