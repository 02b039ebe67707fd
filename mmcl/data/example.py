"""Example folders of images for the commands of the documentation, drawn from the bundled emoji.

The images are Twemoji's, a vendor that `configs/clip_emoji.yaml` never trains on. They are written with their attribution and
license, see `bundled/NOTICE.md`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmcl.data.sources.emoji import EmojiSource
from mmcl.errors import UserError, unknown_name
from mmcl.files.atomic import check_folder, staged

_SIDE = 192
"""Height and width in pixels: three times those of the bundled images, which are small on a screen."""

_NOTICE = """\
The images in this folder are Twemoji v16.0.1, Copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/). Changes made: composited on a white background, resized, re-encoded.
Their names are those of Unicode CLDR 48, Copyright (c) 2004-2025 Unicode, Inc., Unicode License V3.
"""

_PHOTOS = {
    "cat": "cat face",
    "grinning_cat": "grinning cat",
    "dog": "dog face",
    "fox": "fox",
    "butterfly": "butterfly",
    "fish": "tropical fish",
    "apple": "red apple",
    "banana": "banana",
    "pizza": "pizza",
    "car": "automobile",
    "bicycle": "bicycle",
    "train": "locomotive",
    "airplane": "airplane",
    "rocket": "rocket",
    "house": "house",
    "tree": "evergreen tree",
    "rose": "rose",
    "sun": "sun",
    "moon": "crescent moon",
    "rainbow": "rainbow",
    "umbrella": "umbrella",
    "guitar": "guitar",
    "heart": "red heart",
    "clock": "alarm clock",
}
"""Captions by the name of the file, of the folder with captions."""

_CLASSES = {"cat": "cat-face", "clock": "time", "heart": "heart", "moon": "sky-weather"}
"""Subgroup of the emoji by class, of the folder with classes; an image belongs to a class if its name contains the class."""
_PER_CLASS = 8


def write_example(folder: Path, kind: str = "captions") -> int:
    """Writes an example folder. Returns its number of images, which are PNG files of 192 x 192 pixels.

    Args:
        folder: a new or empty folder; missing parent folders are created.
        kind: "captions" writes images and captions.csv, "classes" a subfolder of images for each class.

    Raises:
        UserError: the folder has files already, or cannot be written; or there is no such kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of example", kind, KINDS)
    check_folder(folder, flag="folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} has files already; give a new folder, or an empty one")
    with staged(folder) as stage:
        stage.mkdir()
        count = KINDS[kind](stage, EmojiSource(None, None, fold="test", vendors=["twemoji"]))
        (stage / "NOTICE.md").write_text(_NOTICE, encoding="utf-8")
    return count


def _write_captions(folder: Path, emoji: EmojiSource) -> int:
    images = {sample.captions[0]: sample.image for sample in map(emoji.__getitem__, range(len(emoji)))}
    for name, caption in _PHOTOS.items():
        _write_image(folder / f"{name}.png", images[caption])
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((f"{name}.png", text) for name, text in _PHOTOS.items())])
    return len(_PHOTOS)


def _write_classes(folder: Path, emoji: EmojiSource) -> int:
    for label, subgroup in _CLASSES.items():
        (folder / label).mkdir()
        samples = [emoji[row] for row in range(len(emoji)) if emoji.subgroup[row] == subgroup]
        for sample in [sample for sample in samples if label in sample.captions[0]][:_PER_CLASS]:
            name = re.sub(r"\W+", "_", sample.captions[0])
            _write_image(folder / label / f"{name}.png", sample.image)
    return len(_CLASSES) * _PER_CLASS


def _write_image(path: Path, encoded: object) -> None:
    assert isinstance(encoded, bytes)
    Image.open(io.BytesIO(encoded)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).save(path)


KINDS: dict[str, Callable[[Path, EmojiSource], int]] = {"captions": _write_captions, "classes": _write_classes}
"""Writers by kind of example."""
