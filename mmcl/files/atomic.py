"""Writing files and folders: they appear complete or not at all, and others may read them as the user's umask says."""

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

_ROOM = ".tmp-mmcl-"
_LEFT_AFTER_SECONDS = 24 * 3600
_PROBE = bytes(2**16)
"""As little as any output has: what a full disk cannot take, though it may still have room for an empty file."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Gives a place to write a file, or to make a folder, that becomes `path` when the block ends.

    Whatever ends the block, or the process, `path` is what it was before, or all of the new. Files are on the disk (fsync)
    before they are renamed, and have the mode that `open` gives, which libraries that write through temporary files do not
    keep to. A folder replaces the whole of the one before it; where the file system cannot exchange two names in one step,
    the old one is for a moment at `.tmp-mmcl-*/old`. A link is followed, and a device or pipe is written to directly.

    Args:
        path: its parents are made.

    Raises:
        UserError: it cannot be written; names the path and the reason.
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
    """Writes text (UTF-8) or bytes through `staged`. Raises UserError when it cannot be written."""
    with staged(path) as stage:
        stage.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def check_file(path: Path, *, flag: str, suffixes: Sequence[str] = (), inputs: Sequence[str | Path | None] = ()) -> None:
    """Checks, before anything is computed, that a file can be written. Nothing is left there.

    Args:
        path: the file; its folder must exist.
        flag: what the user gave it as, such as "--out".
        suffixes: those that can be written, with the dot; none for any.
        inputs: what is read, which the output must not replace.

    Raises:
        UserError: its suffix, its folder, a permission or the room on the disk is missing, or it is a folder or an input.
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
            path.write_bytes(_PROBE[:1])  # a device: nothing else says whether it takes anything
            return
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        _probe(path.parent)
    except OSError as error:
        raise UserError(f"{where} cannot be written ({_why(error)})") from None


def check_folder(path: Path, *, flag: str) -> None:
    """The same for a folder of outputs, which is made with its parents when it is written.

    Raises:
        UserError: a permission or the room on the disk is missing, or it, or what it would lie in, is a file.
    """
    where = f"{flag} {path}"
    try:
        place = next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())
        if not place.is_dir():
            raise UserError(f"{where}: {place} is a file; give a folder")
        _probe(place)
    except OSError as error:
        raise UserError(f"{where} cannot be written ({_why(error)})") from None


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _probe(folder: Path) -> None:
    """Writes something small and removes it: permissions do not tell of full disks, nor of what even root may not."""
    probe = folder / f"{_ROOM}{secrets.token_hex(4)}"
    try:
        with probe.open("xb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _settle(stage: Path, *, mode: int) -> None:
    """Gives files the mode of the umask, and waits until all is on the disk."""
    files = [path for path in stage.rglob("*") if path.is_file()] if stage.is_dir() else [stage]
    for file in files:
        if file.stat().st_mode & 0o777 != mode:
            file.chmod(mode)
        sync(file)
    for folder in (path for path in (*stage.rglob("*"), stage) if path.is_dir()):
        sync(folder)


def _put(stage: Path, path: Path) -> None:
    if not (path.is_dir() and stage.is_dir()):
        stage.replace(path)  # which refuses a file for a folder, and a folder for a file
    elif not _exchanged(stage, path):
        old = stage.with_name("old")
        path.rename(old)
        try:
            stage.rename(path)
        except OSError:
            old.rename(path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two names in one step; false where the system or the file system cannot (Linux can, NFS cannot)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


@functools.cache  # once in a process: a folder of many files is slow to list
def _remove_leftovers(folder: Path) -> None:
    """What a kill left here a day ago or longer; anything younger may be another process's."""
    for leftover in folder.glob(f"{_ROOM}*"):
        with suppress(OSError):  # another process removed it first
            if leftover.stat().st_mtime < time.time() - _LEFT_AFTER_SECONDS:
                shutil.rmtree(leftover)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
