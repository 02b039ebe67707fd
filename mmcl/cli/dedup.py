"""`mmcl dedup`: equal and nearly equal images of an index, and images that two indexes share."""

from __future__ import annotations

import json as json_module
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mmcl.cli.options import RARE, Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder, write_file
from mmcl.terminal import counted, shortened, terminal_width

if TYPE_CHECKING:
    from mmcl.search import Index
    from mmcl.search.duplicates import Group

_SHOWN = 10
_LEVELS = (0.95, 0.97, 0.99)


def dedup(
    index: str,
    /,
    *,
    threshold: float = 0.97,
    level: Annotated[Literal["near", "exact"], RARE] = "near",
    keep: Annotated[Literal["largest", "oldest", "first"], RARE] = "largest",
    complete: Annotated[bool, RARE] = False,
    where: str | None = None,
    against: str | None = None,
    list: Path | None = None,
    move_to: Path | None = None,
    json: Json = False,
) -> None:
    """Find duplicates of images, and move them away if asked to.

    Examples:
        mmcl dedup photos.mmcl
        mmcl dedup photos.mmcl --threshold 0.99 --list kept.txt

    Nothing is ever deleted. The list of what to keep is read by training: --data.keep kept.txt.

    Args:
        index: A folder made by `mmcl index build`.
        threshold: Least cosine of two images that are duplicates.
        level: near compares embeddings; exact finds files with equal bytes.
        keep: Which one of a group to keep. Of equally large ones the oldest, of equally old ones the largest.
        complete: Split groups so that any two images reach the threshold. Otherwise a chain of similar images is one group.
        where: Look only among these, as in 'folder under "trip"'.
        against: Find images that this other index has too, such as one of test data.
        list: Write the paths to keep into this file, one a line.
        move_to: Move the others into this folder, which keeps their paths.
        json: Print JSON instead of text.
    """
    if list is not None:
        check_file(list, flag="--list")
    if move_to is not None:
        check_folder(move_to, flag="--move_to")
    from mmcl.search import Index

    opened = Index.open(index)
    if against is not None:
        shared = _shared(opened, index, against, threshold, json)
        _act(opened, shared, list, move_to, json)
        return
    groups = opened.duplicates(threshold, where=where, level=level, keep=keep, complete=complete)
    removed = [one for group in groups for one in group.ids[1:]]
    if json:
        rows = [{"keep": group.keep, "ids": group.ids, "scores": group.scores, "lowest": group.lowest} for group in groups]
        show(json_module.dumps({"images": len(opened), "groups": rows}, indent=1))
    else:
        _print(opened, groups, removed)
    _act(opened, removed, list, move_to, json)


def _print(opened: Index, groups: Sequence[Group], removed: Sequence[str]) -> None:
    if not groups:
        say(f"no duplicates among {counted(len(opened), 'image')}")
        return
    share = len(removed) / len(opened)
    say(
        f"{counted(len(removed), 'duplicate')} in {counted(len(groups), 'group')}, {share:.1%} of "
        f"{counted(len(opened), 'image')}; nothing has been changed"
    )
    scores = sorted(score for group in groups for score in group.scores[1:])
    for low, high in zip(edges := _edges(scores[0]), edges[1:], strict=False):
        number = sum(low <= score < high for score in scores)
        say(f"  {low:.3f} to {min(high, 1):.3f} {number:8,}  {'#' * round(40 * number / len(scores))}")
    for group in sorted(groups, key=lambda one: -len(one.ids))[:_SHOWN]:
        first = opened.item(group.keep).name
        more = f"{len(group.ids) - 1:4} of  {first}  (lowest {group.lowest:.3f}, such as {opened.item(group.ids[1]).name})"
        say(shortened(more, terminal_width()))
    if len(groups) > _SHOWN:
        say(f"... and {counted(len(groups) - _SHOWN, 'group')} more (--json lists all)")
    say("to train without them: --list kept.txt, and mmcl train --data.keep kept.txt; to put them aside: --move_to FOLDER")


def _edges(lowest: float) -> Sequence[float]:
    """Five bins from the lowest score to 1."""
    width = (1 - lowest) / 5 or 1e-3
    return [lowest + width * step for step in range(5)] + [1.1]


def _shared(opened: Index, index: str, against: str, threshold: float, json: bool) -> Sequence[str]:
    """Prints which images another index has too. Returns their ids."""
    from mmcl.search import Index

    other = Index.open(against)
    found = opened.overlap(other, threshold)
    if json:
        rows = [{"id": one, "other": two, "score": score} for one, two, score in found]
        show(json_module.dumps({"images": len(opened), "shared": rows}, indent=1))
        return [one for one, _, _ in found]
    counts = ", ".join(f"{len(opened.overlap(other, level)):,} at {level}" for level in _LEVELS)
    say(f"{len(found):,} of {counted(len(opened), 'image')} in {index} are in {against} too, at {threshold:g} ({counts})")
    for one, two, score in sorted(found, key=lambda row: -row[2])[:_SHOWN]:
        say(shortened(f"  {score:.3f}  {opened.item(one).name}  {other.item(two).name}", terminal_width()))
    return [one for one, _, _ in found]


def _act(opened: Index, removed: Sequence[str], kept: Path | None, move_to: Path | None, json: bool) -> None:
    """Writes the list and moves the files, as asked for."""
    gone = set(removed)
    if kept is not None:
        ids, paths = opened.store.column("id").to_pylist(), opened.store.column("path").to_pylist()
        lines = [path for id, path in zip(ids, paths, strict=True) if id not in gone]
        write_file(kept, "".join(f"{line}\n" for line in lines))
        if not json:
            say(f"{counted(len(lines), 'path')} in {kept}")
    if move_to is not None:
        number = _move([opened.item(one).image for one in removed], [opened.item(one).path for one in removed], move_to)
        if not json:
            say(f"{counted(number, 'file')} moved to {move_to}; mmcl index sync brings the index up to date")


def _move(files: Sequence[object], paths: Sequence[str], folder: Path) -> int:
    """Moves files, if all are there and none would replace another. Returns their number."""
    pairs = []
    for file, path in zip(files, paths, strict=True):
        if not isinstance(file, Path) or not file.is_file():
            raise UserError(f"{path}: is not a file of its own, or not there any more; nothing is moved")
        target = folder / path.lstrip("/")
        if ".." in target.parts or os.path.lexists(target):
            raise UserError(f"{target}: is there already, or outside of the folder; give an empty one; nothing is moved")
        pairs.append((file, target))
    for file, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    return len(pairs)
