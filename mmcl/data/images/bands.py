"""Images with any number of channels (without transparency), and their display."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmcl.data.images.decode import MAX_BYTES, allowed_pixels, checked, decode
from mmcl.data.images.deep import is_deep, is_tiff, read_deep, read_tiff
from mmcl.data.images.levels import check_file, read_array, read_file, to_levels
from mmcl.data.sample import ImageLike, is_tensor
from mmcl.errors import UserError
from mmcl.preprocess import Intensity


def decode_to_show(image: ImageLike, *, channels: int = 3, intensity: Intensity = None, name: str | None = None) -> Image.Image:
    """Returns an image for display, with the levels that a model receives. Of three or more bands, the first three are shown
    as RGB; of two, the first as gray.

    Args:
        image: input of `decode` or, if `channels` is neither 1 nor 3, of `read_bands`.
        channels, intensity: settings of the model, see `Preprocess`.
        name: name in error messages; default: its path.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        UserError: the image cannot be read.
    """
    if channels in (1, 3):
        return decode(image, name=name, intensity=intensity)
    bands = read_bands(image, channels, intensity, name=name or "image")
    return Image.fromarray(np.ascontiguousarray(bands[..., :3] if channels > 2 else bands[..., 0]))


def read_bands(image: ImageLike, channels: int, intensity: Intensity, *, name: str) -> np.ndarray:
    """Reads an image with any number of channels: uint8 [H, W, C].

    Args:
        image: an array [H, W], [H, W, C] or [C, H, W], a .npy or .npz file of one, a TIFF file with C bands or pages (extra
            `tiff`), or an image whose mode has C channels, such as RGBA.
        channels: C.
        intensity: see `Preprocess`.
        name: name in error messages.

    Raises:
        UserError: the image cannot be read, or has another number of channels.
    """
    limit = allowed_pixels()
    values, file = image if isinstance(image, np.ndarray) else None, b""
    if not isinstance(image, np.ndarray | Image.Image) and not is_tensor(image):
        values = read_array(image, name, max_pixels=limit, max_bytes=MAX_BYTES)
        if values is None:
            check_file(image, name, MAX_BYTES)
            file = read_file(image)
            values = read_tiff(file, name, limit, pages=True) if is_tiff(file) else None
    if values is None:
        with checked(image, name, limit, MAX_BYTES) as stored:
            values = read_deep(file, stored, name) if file and is_deep(stored) else np.asarray(stored)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] != channels and values.shape[0] == channels:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != channels or values.size == 0:
        raise UserError(f"{name}: an array of shape {list(values.shape)}, but the model takes images of {channels} channels")
    return to_levels(values, intensity, name)
