"""Detection of the split and the captions file in a folder of images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcl.data.sources.folders.captions_file import captions_above, usual_captions_files
from mmcl.errors import UserError
from mmcl.files.listing import is_image, is_split

WHOLE = "all"
"""Name that selects all splits together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Layout of an image folder.

    Attributes:
        part: subfolder that contains the images; "" for the whole folder, else ending in "/".
        split: subfolder of the chosen split, in the same form; its sibling folders belong to other data.
        captions: the captions file.
    """

    part: str = ""
    split: str = ""
    captions: Path | None = None

    def is_of_others(self, name: str) -> bool:
        """True if a file is in a sibling folder of the chosen split."""
        around = self.split[: self.split.rstrip("/").rfind("/") + 1]
        beside = self.split != "" and name.startswith(around) and not name.startswith(self.split)
        return beside and "/" in name[len(around) :]


def find_layout(folder: Path, names: Sequence[str], *, split: str | None = None, captions: str | None = None) -> Layout:
    """Descends while all images are in one subfolder, and into the chosen split, until a captions file is found.

    Args:
        folder: the whole folder.
        names: all files in it, as returned by `list_files`.
        split: name of the requested subfolder or split of the captions file; `WHOLE` combines all splits.
        captions: path of the captions file relative to the folder, if given.

    Raises:
        UserError: several splits or captions files exist and none was chosen, or the chosen one is missing.
    """
    if captions is not None:
        if not (folder / captions).is_file():
            raise UserError(f"{folder}: no captions file {captions!r} in it")
        part = "" if split in (None, WHOLE) else f"{split}/"
        return Layout(part=part, split=part, captions=folder / captions)
    layout = _find(folder, names, "", split)
    return layout if layout.captions else dataclasses.replace(layout, captions=captions_above(folder / layout.part))


def _find(folder: Path, names: Sequence[str], part: str, split: str | None) -> Layout:
    usual = usual_captions_files(folder, names, part)
    of_split = [name for name in usual if split in (None, WHOLE) or _is_of(name, split)]
    if of_split:
        return Layout(part=part, captions=folder / _only(folder, of_split))
    images = [name for name in names if is_image(name)]
    children = {name[len(part) :].partition("/")[0] if "/" in name[len(part) :] else None for name in images}
    outer = folder / usual[0] if len(usual) == 1 else None
    if split in children and split is not None:
        below = f"{part}{split}/"
        layout = _find(folder, [name for name in names if name.startswith(below)], below, None)
        return dataclasses.replace(layout, split=below, captions=layout.captions or outer)
    splits = sorted(child for child in children if child is not None and is_split(child))
    if split is None and len(splits) > 1:
        listing = f"{folder / part}: has the splits {', '.join(splits)}"
        choice = f"choose one by {by_argument('split', splits[-1])}, or give its folder"
        raise UserError(f"{listing}; {choice}; `split: {WHOLE}` takes them together")
    only = next(iter(children)) if len(children) == 1 else None
    if only is not None:
        layout = _find(folder, names, f"{part}{only}/", split)
        return dataclasses.replace(layout, captions=layout.captions or outer)
    if split not in (None, WHOLE):
        raise UserError(f"{folder / part}: no images of a split {split!r}; it has {', '.join(sorted(filter(None, children)))}")
    _refuse_several(folder, names, [f"{part}{child}/" for child in sorted(filter(None, children))])
    return Layout(part=part)


def _refuse_several(folder: Path, names: Sequence[str], parts: Sequence[str]) -> None:
    """Raises UserError if parts that would be read together have separate captions files."""
    own = [name for part in parts for name in usual_captions_files(folder, names, part)]
    if own:
        raise UserError(
            f"{folder}: {' and '.join(own[:2])} describe a part of its images each; give one of these folders, or put the rows "
            "of all into one captions file beside them"
        )


def _only(folder: Path, names: Sequence[str]) -> str:
    if len(names) > 1:
        choice = f"choose one by {by_argument('captions', names[0])}"
        raise UserError(f"{folder}: both {names[0]} and {names[1]} describe its images; {choice}")
    return names[0]


def _is_of(name: str, split: str | None) -> bool:
    """True if a captions file's name contains the split, as `captions_train2017.json` contains train."""
    words = re.split(r"[-_.]", Path(name).stem.lower())
    return any(word == split or (is_split(word) and word.rstrip("0123456789") == split) for word in words)


def by_argument(argument: str, value: str) -> str:
    """How to give an argument to the source of a folder, in a configuration and on the command line."""
    return f'`args: {{{argument}: {value}}}` of the data (mmcl data: --args "{{{argument}: {value}}}")'
