"""What counts as a caption: captions come from untrusted files too."""

from __future__ import annotations

from mmcl.errors import UserError

MAX_CHARACTERS = 20_000


def caption_lines(text: str) -> tuple[str, ...]:
    """The captions in a text file: every line that is not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def checked_caption(caption: object, name: str) -> str:
    """A caption that a tokenizer can take: valid Unicode, neither empty nor absurdly long.

    Raises:
        UserError: names the sample and what is wrong with its caption.
    """
    if not isinstance(caption, str):
        raise UserError(f"{name}: the caption is of type {type(caption).__name__}, not a text")
    if not caption.strip():
        raise UserError(f"{name}: the caption is empty")
    if len(caption) > MAX_CHARACTERS:
        raise UserError(f"{name}: the caption has {len(caption)} characters, more than the limit of {MAX_CHARACTERS}")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{name}: the caption is not valid Unicode") from None
    return caption
