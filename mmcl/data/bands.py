"""Images of any number of channels, none of which is a transparency."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from mmcl.data.decode import MAX_BYTES, allowed_pixels, checked
from mmcl.data.levels import check_file, check_shape, read_array, read_file, to_levels
from mmcl.data.source import ImageLike
from mmcl.errors import UserError, first_line
from mmcl.types import Intensity

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_bands(image: ImageLike, channels: int, intensity: Intensity, *, name: str) -> np.ndarray:
    """An image of any number of channels: uint8 [H, W, C].

    Args:
        image: an array [H, W], [H, W, C] or [C, H, W], a .npy or .npz file of one, a TIFF file with C bands or pages (extra
            `tiff`), or an image whose mode has C channels, such as RGBA.
        channels: C.
        intensity: see `Preprocess`.
        name: what an error message calls it.

    Raises:
        UserError: it cannot be read, or has another number of channels.
    """
    limit = allowed_pixels()
    values = image if isinstance(image, np.ndarray) else None
    if not isinstance(image, np.ndarray | Image.Image | Tensor):
        values = read_array(image, name, max_pixels=limit, max_bytes=MAX_BYTES)
        if values is None:
            check_file(image, name, MAX_BYTES)
            file = read_file(image)
            values = _from_tiff(file, name, limit) if file.startswith(_TIFF) else None
    if values is None:
        with checked(image, name, limit, MAX_BYTES) as stored:
            values = np.asarray(stored)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] != channels and values.shape[0] == channels:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != channels or values.size == 0:
        raise UserError(f"{name}: an array of shape {list(values.shape)}, but the model takes images of {channels} channels")
    return to_levels(values, intensity, name)


def _from_tiff(file: bytes, name: str, max_pixels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise UserError(f"{name}: a TIFF file of many bands needs tifffile: pip install 'mmcl[tiff]'") from None
    try:
        with tifffile.TiffFile(io.BytesIO(file)) as tiff:
            series = tiff.series[0]
            check_shape(series.shape, max_pixels)
            values, axes = series.asarray(), series.axes
        return np.moveaxis(values, [axes.index("Y"), axes.index("X")], [0, 1]).reshape(*_sides(values, axes), -1)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # Damaged files make the parser raise almost anything.
        raise UserError(f"{name}: cannot be decoded: {first_line(error)}") from error


def _sides(values: np.ndarray, axes: str) -> tuple[int, int]:
    return values.shape[axes.index("Y")], values.shape[axes.index("X")]
