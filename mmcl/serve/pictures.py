"""Pictures that come in and go out: dropped ones are checked by their header, shown ones are encoded anew."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from PIL import Image

from mmcl.data.images.decode import FORMATS, checked
from mmcl.errors import UserError
from mmcl.search.image_facts import to_jpeg

MAX_UPLOADS = 8
SHOWN_SIDE, _SHOWN_QUALITY = 2048, 85
_CACHE_BYTES = 64 * 2**20


def check_upload(content: bytes, name: str) -> bytes:
    """Returns the file of a picture to search for, with its header checked: its format, and its number of pixels.

    Raises:
        UserError: it is no image of a common format, or too large.
    """
    try:
        # Arrays and other files that mmcl reads from a disk are not pictures that one drops.
        Image.open(io.BytesIO(content), formats=FORMATS).close()
    except Image.DecompressionBombError:
        raise UserError(f"{name} has too many pixels") from None
    except Exception:  # hostile files make the parsers raise almost anything
        raise UserError(f"{name} is not an image in one of the formats {', '.join(FORMATS)}") from None
    with checked(content, name, None, len(content)):
        return content


def encode_shown(image: Image.Image) -> bytes:
    """Encodes an image for the page, of at most 2048 pixels a side: JPEG."""
    return to_jpeg(image, SHOWN_SIDE, _SHOWN_QUALITY)


class BytesCache:
    """Files that were made recently, 64 MB of them; safe with threads, which may make one twice."""

    def __init__(self, max_bytes: int = _CACHE_BYTES):
        self._max = max_bytes
        self._files: OrderedDict[Hashable, bytes] = OrderedDict()
        self._size, self._lock = 0, Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Returns the file of a key, made if it is not there."""
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        file = make()
        with self._lock:
            if key not in self._files:
                self._files[key] = file
                self._size += len(file)
            while self._size > self._max and len(self._files) > 1:
                _, old = self._files.popitem(last=False)
                self._size -= len(old)
        return file
