"""Removal of what is private from what is published: secrets, and where files are on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

_HIDDEN = "***"
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{10,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|AKIA[0-9A-Z]{12,}"
)
"""Tokens of the hub, of GitHub, of GitLab, of OpenAI and of AWS, by which accounts can be used."""
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>\\`]+")
_PLACES = ("run_dir", "root", "cache_dir")
"""Settings that say nothing but a place."""


def redacted(value: Any) -> Any:
    """Returns JSON values with names in place of paths, without secrets, and with URLs that have no login and no query.

    A path is a string that starts like one, or that is one here, also behind the prefix of a library (`hf:`). Settings that say
    nothing but a place (`run_dir`, `root`) are left out.

    Example:
        >>> redacted({"run_dir": "runs/a", "path": "/home/me/photos", "url": "https://me:secret@host/a.tar?token=1"})
        {'path': 'photos', 'url': 'https://host/a.tar'}
    """
    if isinstance(value, Mapping):
        return {key: redacted(one) for key, one in value.items() if key not in _PLACES}
    if isinstance(value, list | tuple):
        return [redacted(one) for one in value]
    if not isinstance(value, str):
        return value
    return _SECRET.sub(_HIDDEN, _URL.sub(lambda url: _plain_url(url[0]), _without_path(value)))


def has_secret(text: str) -> bool:
    """True if a text holds a token, or a URL with a login or a query."""
    return _SECRET.search(text) is not None or any(_plain_url(url[0]) != url[0] for url in _URL.finditer(text))


def private_part(text: str) -> str | None:
    """Returns the first part of a text that should not be published, shortened so that it can be shown: a secret, the home
    folder or the current one; None if there is none."""
    if (secret := _SECRET.search(text)) is not None:
        return f"{secret[0][:6]}…"
    login = next((url[0] for url in _URL.finditer(text) if "@" in urlsplit(url[0]).netloc), None)
    if login is not None:
        return f"{_plain_url(login)} with a login"
    here = (str(Path.home()), str(Path.cwd()))
    return next((place for place in here if len(place) > 1 and re.search(rf"{re.escape(place)}(?![\w-])", text)), None)


def _without_path(text: str) -> str:
    """Returns the name of what a text is the path of; of a model, with the prefix of its library and its architecture."""
    if "\n" in text or _URL.match(text):
        return text
    found = re.fullmatch(r"((?:[A-Za-z][\w-]+:)*)(?:([\w.-]+)/)?(.*)", text)
    assert found is not None, "all parts may be empty"
    prefix, start, rest = found[1], found[2], found[3]
    whole = rest if start is None else f"{start}/{rest}"
    if _is_path(whole):
        return prefix + (PureWindowsPath(whole).name or PurePosixPath(whole).name)
    if start is not None and _is_path(rest):
        return f"{prefix}{start}/{PurePosixPath(rest).name}"
    return text


def _is_path(text: str) -> bool:
    starts_like_one = re.match(r"~?/|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\", text) is not None
    return starts_like_one or ("/" in text and len(text) < 4096 and Path(text).exists())


def _plain_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:  # no URL after all
        return _HIDDEN
