"""Writing of figures, in the format that the suffix of the file names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mmcl.files.atomic import staged, write_file

if TYPE_CHECKING:
    from PIL import Image

FIGURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")
"""Of the formats that Pillow writes a figure in."""


def write_figure(path: Path, figure: Image.Image | bytes) -> None:
    """Writes a figure, an image or PNG bytes; the bytes go unchanged into a .png.

    Raises:
        UserError: the file cannot be written.
    """
    if isinstance(figure, bytes) and path.suffix.lower() == ".png":
        write_file(path, figure)
        return
    from PIL import Image

    image = Image.open(io.BytesIO(figure)) if isinstance(figure, bytes) else figure
    with staged(path) as stage:
        image.convert("RGB").save(stage)
