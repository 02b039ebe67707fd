"""Folders with every common problem beside intact images."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.tars import picture

WHOLE = 4


def noise(kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind, **how)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A file whose header states this number of pixels."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0")), (b"IEND", b""))
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wrong_crc() -> bytes:
    content = bytearray(noise("PNG"))
    content[content.index(b"IDAT") + 40] ^= 1
    return bytes(content)


def float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


BAD_IMAGES = {
    "truncated.jpg": noise("JPEG")[:900],
    "truncated.webp": noise("WEBP")[:500],
    "truncated.gif": noise("GIF")[:500],
    "truncated.avif": noise("AVIF")[:500],
    "pdf.jpg": b"%PDF-1.7\n" + b"x" * 100,
    "page.jpg": b"<html>404 not found</html>",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "zeros.jpg": bytes(1000),
    "empty.png": b"",
    "crc.png": wrong_crc(),
    "bomb.png": png(100_000, 100_000),
    "nothing.png": png(0, 5),
    "float.tiff": float_tiff(),
}
"""Files by name that are called like images and cannot be decoded."""


def write_bad_files(folder: Path) -> list[str]:
    """`BAD_IMAGES`, and folders and pipes with names of images. Returns all names."""
    for name, content in BAD_IMAGES.items():
        (folder / name).write_bytes(content)
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    return [*BAD_IMAGES, "lost.jpg", "loop.jpg", "pipe.jpg", "huge.jpg"]


def write_listed(folder: Path) -> tuple[list[str], list[str]]:
    """A folder with captions.csv. Returns what must be found wrong, and what is not used."""
    folder.mkdir()
    bad = write_bad_files(folder)
    (folder / "folder.jpg").mkdir()
    for name in ("nocaption.png", "long.png", "unlisted.png", *(f"whole{n}.png" for n in range(WHOLE))):
        (folder / name).write_bytes(picture())
    for name in ("photo.heic", "film.mp4", "notes", "caf\udce9.jpg"):
        (folder / name).write_bytes(b"x")
    bad += ["folder.jpg", "missing.png", "deep/gone.png", "../outside.png", "n" * 300 + ".png"]
    rows = [f'"{name}",of {name}' for name in bad] + [f"whole{n}.png,whole {n}" for n in range(WHOLE)]
    rows += ["nocaption.png, ", f"long.png,{'a' * 30_000}", ",of no image"]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    return [*bad, "nocaption.png", "long.png", f"captions.csv, row {len(rows)}"], [
        "unlisted.png",
        "photo.heic",
        "film.mp4",
        "notes",
        "caf\\udce9",
    ]


def write_beside(folder: Path) -> tuple[list[str], list[str]]:
    """A folder with texts beside the images. Returns what must be found wrong, and what is not used."""
    folder.mkdir()
    bad = write_bad_files(folder)
    texts = {
        "latin.txt": "café".encode("latin-1"),
        "utf16.txt": "two".encode("utf-16"),
        "binary.caption": bytes(range(256)),
        "blank.txt": b"\n \n",
        "huge.png.txt": b"a" * 2**21,
        "long.txt": b"a" * 30_000,
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
        (folder / f"{name.partition('.')[0]}.png").write_bytes(picture())
    (folder / "locked.txt").mkdir()
    for name in ("caf\udce9", "textless", "locked", *(f"whole{n}" for n in range(WHOLE))):
        (folder / f"{name}.png").write_bytes(picture())
        if name not in ("textless", "locked"):
            (folder / f"{name}.txt").write_text("whole")
    for name in ("photo.heic", "film.mp4", "notes", "alone.txt"):
        (folder / name).write_bytes(b"x")
    names = [f"{name.partition('.')[0]}.png" for name in texts]
    return [*bad, *names, "textless.png", "locked.png", "caf\\udce9.png"], ["photo.heic", "film.mp4", "notes", "alone.txt"]
