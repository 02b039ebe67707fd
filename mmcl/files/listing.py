"""Listing of the files in a folder, and their classification by name."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from mmcl.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Suffixes of readable images."""

CONVERTIBLE_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".pdf", ".eps", ".ico", ".tga", ".exr", ".hdr"),
    *(".dcm", ".nii", ".mha", ".nrrd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)
"""Suffixes of images that must be converted before they can be read."""

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".m4v", ".wmv")
PACKED_SUFFIXES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
ARRAY_SUFFIXES = (".npy", ".npz")

_FIXES = {
    **dict.fromkeys(CONVERTIBLE_SUFFIXES, "to convert to .jpg or .png"),
    **dict.fromkeys(VIDEO_SUFFIXES, "to take frames from"),
    **dict.fromkeys(PACKED_SUFFIXES, "to unpack"),
    **dict.fromkeys(ARRAY_SUFFIXES, "to name in a table"),
}
"""How to convert files with a given suffix to readable images."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer file."""

_SYSTEM = frozenset(
    ("@eadir", "#recycle", "#snapshot", "@recycle", "@tmp", "$recycle.bin", "system volume information")
    + ("lost+found", "__macosx", "thumbs.db", "desktop.ini")
)
"""Files of operating systems and network drives, such as thumbnails and deleted files."""

_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice)(\.(md|rst))?", re.IGNORECASE)
"""Files about the data. A .txt file of such a name may be a caption."""

_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|dev|test(ing)?)([-_]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Listing:
    """Contents of a folder.

    Attributes:
        names: paths of all files relative to the folder, with "/" as separator, sorted by their parts.
        unreadable: folders whose content cannot be listed, with the reason.
        linked: linked folders that are not entered: links to folders inside this one, or to one of its parents.
    """

    names: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)


def list_files(folder: Path) -> Listing:
    """Lists all files in a folder and its subfolders, except hidden files, those of operating systems, and README and LICENSE.

    Linked folders are entered once each. Files are not opened; only their names are read.

    Raises:
        UserError: the folder itself cannot be read.
    """
    listing, top = Listing(), str(folder)
    entered = [os.path.realpath(top)]

    def refused(error: OSError) -> None:
        if error.filename == top:
            raise UserError(f"{top}: cannot be read: {error.strerror}")
        listing.unreadable.append((_inside(top, error.filename), error.strerror or type(error).__name__))

    for place, folders, files in os.walk(top, onerror=refused, followlinks=True):
        prefix = "" if place == top else f"{_inside(top, place)}/"
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        for name in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            real = os.path.realpath(os.path.join(place, name))
            if any(_holds(real, other) or _holds(other, real) for other in entered):
                folders.remove(name)
                listing.linked.append(prefix + name)
            else:
                entered.append(real)
        listing.names.extend(prefix + name for name in files if not (_is_skipped(name) or _ABOUT.fullmatch(name)))
    listing.names.sort(key=lambda name: name.replace("/", "\0"))  # by parts: no character is before this one
    return listing


def suffix_of(name: str) -> str:
    """Returns the suffix of a file name in lower case, including the dot; "" if it has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")  # three times as fast as `os.path.splitext`
    return f".{suffix.lower()}" if dot and stem.strip(".") else ""


def is_image(name: str) -> bool:
    """True if a file is a readable image according to its name."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_split(name: str) -> bool:
    """True if a folder is named after a split, such as "train", "Val" or "test2017", rather than a class."""
    return _SPLIT.fullmatch(name) is not None


def without_suffix(name: str) -> str:
    """Returns the name without its suffix in composed Unicode, so that names that look the same compare equal."""
    return composed(os.path.splitext(name)[0])


def composed(name: str) -> str:
    """Returns a name in composed Unicode (NFC): some disks and archives store "é" as "e" and an accent, most lists do not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_any_form(path: Path) -> Path:
    r"""Returns the spelling of a path that exists: Unicode composed or not, "/" for "\"; the path itself if none exists."""
    name = str(path)
    if name.isascii() and "\\" not in name:
        return path
    composed_or_not = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    forms = (name, *composed_or_not, *(form.replace("\\", "/") for form in composed_or_not))
    return Path(next(filter(os.path.exists, forms), path))


def reason_unused(name: str) -> str:
    """Returns why a file is not used, according to its name: its kind, and how to convert it to a readable image."""
    suffix = suffix_of(name)
    return f"{suffix} {_FIXES[suffix]}" if suffix in _FIXES else suffix or "without suffix"


def valid_name(path: object) -> str:
    r"""Returns a path as valid Unicode, for messages and files: bytes that are not UTF-8 are escaped, as in "caf\udce9.jpg"."""
    name = str(path)
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def file_named(name: str) -> Path | None:
    """Finds the file for a name returned by `valid_name`; None if it does not exist."""
    unescaped = re.sub(r"\\udc([89a-f][0-9a-f])", lambda escape: chr(0xDC00 + int(escape[1], 16)), name)
    return next((Path(place) for place in (name, unescaped) if os.path.isfile(place)), None)


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _inside(top: str, place: str) -> str:
    return os.path.relpath(place, top).replace(os.sep, "/")


def _holds(folder: str, place: str) -> bool:
    return place == folder or place.startswith(folder.rstrip(os.sep) + os.sep)
