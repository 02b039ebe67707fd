"""Access to the Hugging Face hub and other servers of weights: errors in one line, and soon, where there is no network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread

from mmcl.errors import UserError
from mmcl.files.untrusted import reason

_SECONDS = 5
"""Time in which a server has to answer: the hub's client tries every file again for half a minute, even without a network."""

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@.+)?")
"""A name on the hub. All others are paths: absolute, relative with a dot, or of more than two parts."""


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Converts any exception from loading a model by name into a UserError with the fix.

    If the hub is unreachable, only the local cache is used.
    """
    try:
        with offline_if_unreachable():
            yield
    except UserError:
        raise
    except Exception as error:  # from the hub client, the network, the file system, JSON, pickle or transformers
        if Path(name).is_dir():
            raise UserError(f"{name}: has no model that can be loaded: {reason(error)}") from None
        if _is_path(name) or (not is_reachable() and isinstance(error, OSError)):
            raise not_found(name) from None
        raise UserError(
            f"{name}: no such folder, and cannot be loaded from the hub ({reason(error)}); check the name"
        ) from None


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the Hugging Face libraries offline: files must be in a local folder or in the cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Applies `offline` unless the hub is reachable, so that cached files load at once and missing ones fail at once."""
    with nullcontext() if is_reachable() else offline():
        yield


def not_found(name: str) -> UserError:
    """Builds the error for a model that is not in the cache and cannot be downloaded now, or for a folder that is not there."""
    from huggingface_hub import constants

    if _is_path(name):
        return UserError(f"{name}: no such folder; check the path")
    why, fix = _unreachable()
    return UserError(
        f"{name}: {why}, and it is not in the cache; {fix}, or load the model where there is a network and copy "
        f"{constants.HF_HUB_CACHE} from there"
    )


def data_not_found(name: str) -> UserError:
    """Builds the error for data that are not in the cache and cannot be downloaded now."""
    from huggingface_hub import constants

    why, fix = _unreachable()
    return UserError(
        f"{name}: {why}, and its data are not in the cache; {fix}, or load them where there is a network and copy "
        f"{constants.HF_HOME} from there"
    )


def _unreachable() -> tuple[str, str]:
    """Returns why nothing can be downloaded, and what to do about it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set", "unset it"
    return f"{constants.ENDPOINT} does not answer", "check the network"


def _is_path(name: str) -> bool:
    """Whether a name, perhaps behind a scheme, cannot be one of the hub."""
    return not _REPOSITORY.fullmatch(name.rpartition(":")[2])


def is_cached(repository: str) -> bool:
    """True if files of a repository have been downloaded, all or some."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}").is_dir()


def is_reachable() -> bool:
    """True if the hub may be asked, and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, int(time.monotonic() // 60))


@lru_cache(maxsize=1)
def _answers(endpoint: str, minute: int) -> bool:
    """True if the hub answers; asked again every minute.

    In a thread, because no timeout of a request bounds the search for the address and the tries of all addresses together.
    """
    from huggingface_hub import get_session

    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # the hub client's HTTP library depends on its version
            answers.append(get_session().head(endpoint, timeout=_SECONDS))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_SECONDS)
    return bool(answers)
