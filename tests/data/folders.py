"""Folders of files for tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.data.open import open_source
from mmcl.data.source import Source
from tests.data.tars import picture
from tests.narrow import present


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Files by their names; "" makes an image, as it does of a name that ends like one."""
    for number, (name, content) in enumerate(files.items()):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        raw = picture(number) if content == "" else content
        place.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return folder


def images(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "")


def read(folder: Path, **args: Any) -> dict[str, tuple[str, ...]]:
    """Captions by the image's name within the folder."""
    source = open_source("auto", str(folder), str(folder.parent / "root"), args)
    return {os.path.relpath(source[i].name, folder): source[i].captions for i in range(len(source))}


def classes(source: Source) -> list[str | None]:
    labels, names = [source[i].label for i in range(len(source))], present(source.class_names)
    return [None if label is None else names[label] for label in labels]
