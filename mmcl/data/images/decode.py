"""Safe decoding of untrusted image files to upright RGB or gray pixels.

The header is checked before any pixel is decoded, only the parsers of common formats are tried, and any exception in them
becomes a `UserError` that names the file.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from mmcl.data.images.deep import is_deep, is_misread, is_tiff, read_deep, read_tiff
from mmcl.data.images.levels import File, check_file, read_array, read_file, to_levels, warn_of_darkness
from mmcl.data.images.metadata import without_metadata
from mmcl.data.sample import ImageLike, is_tensor
from mmcl.errors import UserError, first_line
from mmcl.files.listing import LFS_POINTER
from mmcl.preprocess import Intensity

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Allowed Pillow parsers. Others (PSD, FITS, PDF, EPS, ...) are rare in datasets and had security vulnerabilities."""

MAX_PIXELS = 64_000_000
"""Default limit of width x height; overridden by the environment variable MMCL_MAX_PIXELS."""
MAX_BYTES = 256 * 2**20

# Pillow's warnings about damaged metadata, or about large images that are allowed here, do not help the user.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")

SCALES = (1, 2, 4, 8)
"""Factors by which a JPEG can be shrunk during decoding."""

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = [_TO_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
_ORIENTATION_TAG = 0x0112
_LIMIT = "MMCL_MAX_PIXELS"
_TWELVE_BITS_IN_8 = 16
_RAISE_LIMIT = f"raise data.max_pixels, or {_LIMIT} in the environment"


def allow_pixels(max_pixels: int) -> None:
    """Sets the largest width x height that this process and its children decode."""
    os.environ[_LIMIT] = str(max_pixels)


def allowed_pixels() -> int:
    """Largest width x height that is decoded. Raises UserError if MMCL_MAX_PIXELS is not a number."""
    given = os.environ.get(_LIMIT, MAX_PIXELS)
    try:
        return int(given)
    except ValueError:
        raise UserError(f"environment variable {_LIMIT}={given}: give a number of pixels") from None


def decode(
    image: ImageLike,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
    max_bytes: int = MAX_BYTES,
    intensity: Intensity = None,
) -> Image.Image:
    """Reads an image: first frame, upright by its EXIF orientation, transparency on white, 16 bits per channel cut to 8.

    Damaged metadata are ignored: without a readable orientation, the image is assumed to be upright.

    Args:
        image: a path, an encoded file or its byte range in another file, a PIL image, or an array, also in a .npy or .npz file,
            [H, W] or [H, W, C] with C = 1, 3 or 4; the fourth channel is transparency.
        name: name in error messages; default: its path.
        max_pixels: largest width x height, checked in the header before decoding; default: `allowed_pixels`.
        max_bytes: size limit of the encoded file.
        intensity: see `Preprocess`.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        UserError: the file is missing, too large, truncated, corrupt, or in none of `FORMATS`.
    """
    with opened(image, name=name, max_pixels=max_pixels, max_bytes=max_bytes, intensity=intensity) as header:
        pixels = header.pixels()
        return pixels.copy() if pixels is image else pixels


def measure(image: ImageLike, *, name: str, intensity: Intensity = None) -> tuple[int, int]:
    """Reads the stored width and height from the header only. Raises UserError as `decode` does, except for pixel errors."""
    with checked(image, name, None, MAX_BYTES, intensity=intensity) as stored:
        return stored.width, stored.height


class Opened:
    """An opened image whose pixels are not yet decoded, so that the crop can be chosen first.

    Attributes:
        width, height: size of the whole upright image.
        may_shrink: whether it can be decoded at any of `SCALES` (a JPEG file) or only at full size.
    """

    def __init__(self, stored: Image.Image, name: str, *, may_shrink: bool, intensity: Intensity = None):
        self._stored, self._name, self._intensity = stored, name, intensity
        self.may_shrink = may_shrink and isinstance(stored, JpegImageFile)
        if not self.may_shrink:
            stored.load()
        self._transpose = _TO_UPRIGHT.get(_orientation(stored))
        self.width, self.height = stored.size[::-1] if self._transpose in _SWAP_SIDES else stored.size

    @property
    def taken(self) -> datetime | None:
        """Date of the photograph, without a zone (EXIF DateTimeOriginal); None if it is missing or damaged."""
        try:
            text = self._stored.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
            return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S") if text else None
        except Exception:  # Damaged EXIF data make Pillow raise almost anything.
            return None

    def pixels(self, scale: int = 1) -> Image.Image:
        """Decodes the whole upright image, of mode "RGB" or "L".

        Args:
            scale: divisor of the sides, which are rounded up; a partial inverse cosine transform (Pillow's `draft`).
        """
        if scale > 1:
            self._stored.draft(None, (self._stored.width // scale, self._stored.height // scale))
        self._stored.load()
        upright = self._stored if self._transpose is None else self._stored.transpose(self._transpose)
        pixels = _to_rgb_or_gray(upright, self._intensity, self._name)
        if pixels is not self._stored:
            pixels.info.clear()  # Otherwise decoding this image again would apply the orientation twice.
        return pixels


@contextmanager
def opened(
    image: ImageLike,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
    max_bytes: int = MAX_BYTES,
    intensity: Intensity = None,
) -> Iterator[Opened]:
    """Opens an image and checks its header. Arguments and errors, also within the block, are those of `decode`."""
    name = name or (str(image) if isinstance(image, str | Path) else "image")
    with checked(image, name, max_pixels, max_bytes, loads=True, intensity=intensity) as stored:
        # Shrinking modifies the image, so it must not be applied to the caller's.
        yield Opened(stored, name, may_shrink=not isinstance(image, Image.Image), intensity=intensity)


@contextmanager
def checked(
    image: ImageLike,
    name: str,
    max_pixels: int | None,
    max_bytes: int,
    *,
    loads: bool = False,
    intensity: Intensity = None,
) -> Iterator[Image.Image]:
    """Opens an image whose header is within the limits; parser exceptions within the block become `UserError`.

    With `loads`, its pixels are decoded, except for a JPEG, which may be shrunk first.
    """
    limit = allowed_pixels() if max_pixels is None else max_pixels
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # Pillow has its own limit.
    if is_tensor(image):
        raise UserError(f"{name}: a tensor is a model's own input; give an array or a PIL image")
    if not isinstance(image, np.ndarray | Image.Image):
        image = _or_array(image, name, limit, max_bytes)
    if isinstance(image, np.ndarray):
        image = _from_array(image, intensity, name)
    try:
        with ExitStack() as files:
            try:
                stored = files.enter_context(_open(image, name, max_bytes))
                stored = _check_and_load(stored, image, name, limit, loads=loads, intensity=intensity)
            except UserError:
                raise
            except Exception as error:
                file = b"" if isinstance(image, Image.Image) else read_file(image)
                bare = without_metadata(file)  # The pixels may be intact.
                if bare is not None:
                    stored = files.enter_context(_open(bare, name, max_bytes))
                    stored = _check_and_load(stored, bare, name, limit, loads=loads, intensity=intensity)
                elif isinstance(error, Image.UnidentifiedImageError) and is_tiff(file):
                    stored = _from_array(read_tiff(file, name, limit), intensity, name)
                else:
                    raise
            yield stored
    except UserError:
        raise
    except Image.DecompressionBombError:  # Pillow refuses the largest when they are opened.
        raise UserError(f"{name}: more pixels than the limit of {limit}; {_RAISE_LIMIT}") from None
    except Image.UnidentifiedImageError:
        content = b"" if isinstance(image, Image.Image) else read_file(image)
        raise UserError(f"{name}: {_what_it_is(content)}") from None
    except Exception as error:  # Hostile files make Pillow's parsers raise almost anything.
        raise UserError(f"{name}: cannot be decoded: {first_line(error)}") from error


def _what_it_is(content: bytes) -> str:
    """Explains from its first bytes why a file is not a supported image, and what to do."""
    start = content[:256].lstrip().lower()
    if content.startswith(LFS_POINTER):
        return "is a pointer of Git LFS; fetch the file by `git lfs pull`"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return "is a HEIC image, which is not read; convert it, such as by `heif-convert a.heic a.jpg`"
    if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "is a JPEG XL image, which is not read; convert it, such as by `djxl a.jxl a.png`"
    if start.startswith(b"%pdf"):
        return "is a PDF, not an image; convert its pages, such as by `pdftoppm -png a.pdf a`"
    if start.startswith((b"<svg", b"<?xml")):
        return "is SVG or XML, not an image of pixels; convert it, such as by `rsvg-convert -o a.png a.svg`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image: the download gave an error page"
    return f"not an image, or in none of the formats {', '.join(FORMATS)}"


def _check_and_load(
    stored: Image.Image, image: File | Image.Image, name: str, limit: int, *, loads: bool, intensity: Intensity
) -> Image.Image:
    if stored.width * stored.height > limit:
        raise UserError(f"{name}: {stored.width} x {stored.height} pixels, more than the limit of {limit}; {_RAISE_LIMIT}")
    if not loads or isinstance(stored, JpegImageFile):
        return stored
    deep = None
    if not isinstance(image, Image.Image) and is_deep(stored) and (intensity is not None or is_misread(stored)):
        deep = read_deep(read_file(image), stored, name)
    is_cut = is_deep(stored) and stored.format != "PPM"
    stored.load()  # Formats such as PNG may state the orientation after the pixels.
    if deep is not None:
        values = _from_deep(deep, intensity, name)
        values.getexif()[_ORIENTATION_TAG] = _orientation(stored)
        return values
    if is_cut and 0 < np.max(stored.convert("RGB").getextrema()) < _TWELVE_BITS_IN_8:
        warn_of_darkness()
    return stored


def _orientation(stored: Image.Image) -> int:
    try:
        return int(stored.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Damaged EXIF data make Pillow raise almost anything.
        return 1


def _or_array(file: File, name: str, max_pixels: int, max_bytes: int) -> File | np.ndarray:
    array = read_array(file, name, max_pixels=max_pixels, max_bytes=max_bytes)
    return file if array is None else array


def _open(image: File | Image.Image, name: str, max_bytes: int) -> AbstractContextManager[Image.Image]:
    if isinstance(image, Image.Image):
        return nullcontext(image)  # The image is the caller's, who may need its other frames.
    check_file(image, name, max_bytes)
    return Image.open(image if isinstance(image, Path | str) else io.BytesIO(read_file(image)), formats=FORMATS)


def _from_array(array: np.ndarray, intensity: Intensity, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or array.size == 0:
        raise UserError(
            f"{name}: an array must be [H, W] or [H, W, C] with C = 1, 3 or 4, not {list(array.shape)}; for other "
            "channels take an encoder that has them"
        )
    return Image.fromarray(to_levels(array, intensity, name))


def _from_deep(values: np.ndarray, intensity: Intensity, name: str) -> Image.Image:
    """Converts values from `read_deep`; an alpha channel always uses the full 16-bit range, whatever the intensity."""
    if values.ndim == 2 or values.shape[2] % 2:
        return Image.fromarray(to_levels(values, intensity, name))
    colors = to_levels(values[..., :-1], intensity, name)
    alpha = to_levels(values[..., -1:], (0, 65535), name)
    return Image.fromarray(np.concatenate([colors, alpha], axis=2))


def _to_rgb_or_gray(image: Image.Image, intensity: Intensity, name: str) -> Image.Image:
    if image.mode.startswith(("F", "I")):  # grays of 16 bits and more, which Pillow's own conversion would clip at 255
        return Image.fromarray(to_levels(np.asarray(image), intensity, name))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        gray = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if gray else "RGB")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)
