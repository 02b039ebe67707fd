"""Conversion of values of any type to levels from 0 to 255, and reading of .npy and .npz files."""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import zipfile
from pathlib import Path

import numpy as np

from mmcl.errors import UserError, first_line
from mmcl.files.byte_range import FilePart
from mmcl.files.listing import ARRAY_SUFFIXES
from mmcl.logging import get_logger
from mmcl.preprocess import Intensity, Percentiles

logger = get_logger(__name__)

_NPY, _NPZ = b"\x93NUMPY", b"PK\x03\x04"
_TWELVE_BITS = 4095
INTENSITY = "image.preprocess.intensity: [low, high], or {percentiles: [1, 99]} of each image"
"""Description of the setting for the range of values, for messages."""
_HEADER_BYTES = 2**16
"""Size limit of the header of an array file."""

File = Path | str | bytes | FilePart
"""A path, an encoded file, or its byte range in another file."""


def to_levels(values: np.ndarray, intensity: Intensity, name: str) -> np.ndarray:
    """Converts values of any type to levels from 0 to 255, uint8; 8-bit values are returned unchanged, whatever `intensity`.

    Args:
        values: [H, W] or [H, W, C].
        intensity: see `Preprocess`. Percentiles are computed over all values except a fourth channel, which is transparency or
            infrared.
        name: name of the image in error messages.

    Raises:
        UserError: the range of the values is unknown, or they are not finite.
    """
    if values.dtype in (np.uint8, np.bool_):
        return values if values.dtype == np.uint8 else values.astype(np.uint8) * 255
    if intensity is not None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{name}: has values that are not finite")
        low, high = _range(values, intensity)
        share = (values.astype(np.float32) - low) / (high - low)
        gray: np.ndarray = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
        return gray
    fix = f"set {INTENSITY}"
    if values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name}: values of type {values.dtype}, beyond 8 and 16 bits, have no known range; {fix}")
    if 255 < values.max() <= _TWELVE_BITS:
        warn_of_darkness()
    return (values // 257).astype(np.uint8)


@functools.cache
def warn_of_darkness() -> None:
    """Warns, once per process, that 12-bit values are read as 16-bit ones."""
    logger.warning(f"images of 16 bits with values of 12 bits at most are shown nearly black; set {INTENSITY}")


def _range(values: np.ndarray, intensity: tuple[float, float] | Percentiles) -> tuple[float, float]:
    """Returns the values that map to 0 and 255. In a constant image, the value maps to 0."""
    if not isinstance(intensity, Percentiles):
        return intensity
    colors = values[..., :3] if values.ndim == 3 and values.shape[2] == 4 else values
    low, high = map(float, np.percentile(colors, intensity.percentiles))
    return low, high if high > low else low + 1


def read_array(file: File, name: str, *, max_pixels: int, max_bytes: int) -> np.ndarray | None:
    """Reads the array in a .npy or .npz file; None for other files. Raises UserError if it is damaged or too large."""
    is_array = file.startswith((_NPY, _NPZ)) if isinstance(file, bytes) else _path_of(file, name).endswith(ARRAY_SUFFIXES)
    if not is_array:
        return None
    check_file(file, name, max_bytes)
    content = read_file(file)
    try:
        is_archive = content.startswith(_NPZ)
        return _from_npz(content, max_pixels) if is_archive else _from_npy(io.BytesIO(content), max_pixels)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # Damaged files make numpy raise almost anything.
        raise UserError(f"{name}: cannot be read: {first_line(error)}") from error


def check_file(file: File, name: str, max_bytes: int) -> None:
    """Raises UserError if the file is missing, empty or too large."""
    size = _size_of(file, name)
    if size > max_bytes:
        raise UserError(f"{name}: {size} bytes, more than the limit of {max_bytes}")
    if size == 0:
        raise UserError(f"{name}: the file is empty")


def _size_of(file: File, name: str) -> int:
    """Returns the size of a file in bytes. Raises UserError if there is none."""
    if isinstance(file, bytes | FilePart):
        return len(file) if isinstance(file, bytes) else file.size
    try:
        found = os.stat(file)  # once, since it is done for every image
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a path that no file can have
        raise UserError(f"{name}: no such file") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{name}: is not a file")
    return found.st_size


def read_file(file: File) -> bytes:
    """Reads the whole file."""
    if isinstance(file, FilePart):
        return file.read()
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _path_of(file: Path | str | FilePart, name: str) -> str:
    """Returns the path that shows the file type; a byte range of another file has no path of its own, so its name is used."""
    return (name if isinstance(file, FilePart) else str(file)).lower()


def _from_npz(file: bytes, max_pixels: int) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5])
            raise UserError(f"holds {len(members)} arrays ({names}); an image is one")
        _check_bytes(members[0].file_size - _HEADER_BYTES, max_pixels)
        with archive.open(members[0]) as member:
            return _from_npy(member, max_pixels)  # type: ignore[arg-type]


def _from_npy(stream: io.BytesIO, max_pixels: int) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(stream)
    if dtype.kind not in "biuf":
        raise UserError(f"holds {'Python objects' if dtype.hasobject else dtype} and no numbers")
    check_shape(shape, max_pixels)
    count = math.prod(shape)
    _check_bytes(count * dtype.itemsize, max_pixels)
    data = stream.read(count * dtype.itemsize)
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if in_columns else "C")


def check_shape(shape: tuple[int, ...], max_pixels: int) -> None:
    """Limits the number of values, before decompression, to that of a four-channel image of `max_pixels`."""
    if any(side < 1 for side in shape) or math.prod(shape) > 4 * max_pixels:
        raise UserError(f"an array of shape {list(shape)}, more values than the limit of {4 * max_pixels}")


def _check_bytes(size: int, max_pixels: int) -> None:
    """Limits the bytes to those of the allowed number of values at 64 bits each."""
    if size > 32 * max_pixels:
        raise UserError(f"an array of {size} bytes, more than the limit of {32 * max_pixels}")
