"""Atomic writing of files and folders, with the permissions given by the user's umask."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from mmcl.errors import UserError, first_line
from mmcl.files.listing import is_image

_ROOM = ".tmp-mmcl-"
_LEFT_AFTER_SECONDS = 24 * 3600
_PROBE = bytes(2**16)
"""Test content as large as the smallest output: a full disk cannot store it, although an empty file may still fit."""
_SUFFIXES_OF_FILES = (".csv", ".html", ".jpg", ".json", ".md", ".parquet", ".pdf", ".png", ".yaml")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is moved to `path` when the block ends.

    However the block or the process ends, `path` has either its old or its complete new content. Files are flushed to disk
    (fsync) before they are renamed, and get the mode that `open` would give; libraries that write through temporary files may
    set another mode. A folder replaces the old folder as a whole; if the file system cannot exchange two names atomically,
    the old folder is briefly at `.tmp-mmcl-*/old`. A link is followed; a device or pipe is written to directly.

    Args:
        path: the target; missing parent folders are created.

    Raises:
        UserError: `path` cannot be written; names it and the reason.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        room = path.parent / f"{_ROOM}{secrets.token_hex(4)}"
        room.mkdir()
        try:
            stage = room / path.name
            yield stage
            _settle(stage, mode=room.stat().st_mode & 0o666)
            _put(stage, path)
            sync(path.parent)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({_why(error)})") from error


def write_file(path: str | Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes through `staged`. Raises UserError if the file cannot be written."""
    with staged(path) as stage:
        stage.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def check_file(path: Path, *, flag: str, suffixes: Sequence[str] = (), inputs: Sequence[str | Path | None] = ()) -> None:
    """Checks before a computation that a file can be written. Leaves no file behind.

    Args:
        path: the file; its folder must exist.
        flag: the option that gave the path, such as "--out".
        suffixes: the allowed suffixes, with the dot; empty allows any.
        inputs: input files, which the output must not overwrite.

    Raises:
        UserError: the suffix is not allowed, the folder, permission or disk space is missing, or the path is a folder or input.
    """
    where = f"{flag} {path}"
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{where}: give a file that ends in {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise UserError(f"{where}: this is a folder; give a file")
        if any(source is not None and Path(source).exists() and path.exists() and path.samefile(source) for source in inputs):
            raise UserError(f"{where}: this is what is read; give another file")
        if not path.parent.is_dir():
            raise UserError(f"{where}: there is no folder {path.parent}; make it, or correct the path")
        if path.exists() and not path.is_file():
            path.write_bytes(_PROBE[:1])  # a device: only a write shows whether it accepts data
            return
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        _probe(path.parent)
    except OSError as error:
        raise UserError(f"{where} cannot be written ({_why(error)})") from None


def check_folder(path: Path, *, flag: str, made_by: str | None = None) -> None:
    """Checks the same for an output folder, which is created with its parents when it is written.

    Args:
        path: the folder.
        flag: as for `check_file`.
        made_by: name of a file that every such folder has. A folder without it may hold anything but images, which are then the
            user's own.

    Raises:
        UserError: permission or disk space is missing, the path has the suffix of a file or is a folder of images, or it or
            one of its parents is a file.
    """
    where = f"{flag} {path}"
    if path.suffix.lower() in _SUFFIXES_OF_FILES and not path.exists():
        raise UserError(f"{where}: a folder is written; give a name without {path.suffix}")
    try:
        if made_by is not None and path.is_dir() and not (path / made_by).is_file():
            _refuse_images(path, where)
        place = next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())
        if not place.is_dir():
            raise UserError(f"{where}: {place} is a file; give a folder")
        _probe(place)
    except OSError as error:
        raise UserError(f"{where} cannot be written ({_why(error)})") from None


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_images(folder: Path, where: str) -> None:
    image = next((name for name in sorted(os.listdir(folder)) if is_image(name)), None)
    if image is not None:
        raise UserError(f"{where}: holds images, such as {image}; give a folder of its own")


def _probe(folder: Path) -> None:
    """Writes a small file and removes it: permissions show neither full disks nor locations that even root may not write."""
    probe = folder / f"{_ROOM}{secrets.token_hex(4)}"
    try:
        with probe.open("xb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _settle(stage: Path, *, mode: int) -> None:
    """Sets the mode of files according to the umask, and flushes everything to disk."""
    files = [path for path in stage.rglob("*") if path.is_file()] if stage.is_dir() else [stage]
    for file in files:
        if file.stat().st_mode & 0o777 != mode:
            file.chmod(mode)
        sync(file)
    for folder in (path for path in (*stage.rglob("*"), stage) if path.is_dir()):
        sync(folder)


def _put(stage: Path, path: Path) -> None:
    if not (path.is_dir() and stage.is_dir()):
        stage.replace(path)  # refuses to replace a folder by a file, and a file by a folder
    elif not _exchanged(stage, path):
        old = stage.with_name("old")
        path.rename(old)
        try:
            stage.rename(path)
        except OSError:
            old.rename(path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two names atomically; returns false if the system or file system cannot (Linux can, NFS cannot)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@functools.cache  # once per process: a folder of many files is slow to list
def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed processes that are at least a day old; newer ones may be in use."""
    for leftover in folder.glob(f"{_ROOM}*"):
        with suppress(OSError):  # another process removed it first
            if leftover.stat().st_mtime < time.time() - _LEFT_AFTER_SECONDS:
                shutil.rmtree(leftover)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
