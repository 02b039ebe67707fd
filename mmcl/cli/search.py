"""`mmcl search`: search for images by text, images by image, or texts by image."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from mmcl.cli.exit import end_partly
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder

if TYPE_CHECKING:
    from mmcl.interop.model import Model
    from mmcl.search import Index


def search(
    model: Positional[str],
    text: Positional[str | None] = None,
    /,
    *,
    image: Path | None = None,
    images: str | None = None,
    target: Literal["images", "texts"] = "images",
    top_k: int = 10,
    save: Path | None = None,
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Search images by a text, by an image, or by both: mmcl search runs/clip_emoji "a smiling cat"

    Images of the collection that cannot be read are listed, and the exit code is then 1.

    Args:
        model: A run directory, open_clip:ARCH/PRETRAINED or hf:ID.
        text: What to look for.
        image: An image to look for; with a text, both count the same.
        images: A folder, a table or a saved index to search in; default: what the run was evaluated on.
        target: Find images, or the captions that the images carry.
        top_k: How many to find.
        save: Keep the index in this folder: give it as --images next time, and nothing is encoded again.
        picture: Write the found images as one PNG.
        json: Print one JSON list: [{"name": ..., "score": ..., "caption": ...}].
    """
    if not (text or "").strip() and image is None:
        raise UserError("nothing to look for: give a text in quotes, or --image IMAGE")
    _check(image, save, picture)
    from mmcl.data.images.resize import read_pixels
    from mmcl.interop.load import load_model

    loaded = load_model(model)
    if image is not None:
        read_pixels(image, loaded.preprocess)
    index = _index(model, images, loaded)
    if save is not None:
        index.save(save)
    hits = index.search(text, image=image, top_k=top_k, target=target)
    if picture is not None:
        hits.save(picture)
    if json:
        show(json_module.dumps([hit.to_dict() for hit in hits], ensure_ascii=False, indent=1))
    else:
        for rank, hit in enumerate(hits, 1):
            say(f"{rank:3}  {hit.score:6.3f}  {hit.name}" + (f"  {hit.caption}" if hit.caption else ""))
    end_partly([] if images is not None and index.is_saved(images) else index.bad)


def _check(image: Path | None, save: Path | None, picture: Path | None) -> None:
    """Raises UserError for errors that would otherwise appear only after a collection is embedded."""
    from mmcl.data.images.decode import MAX_BYTES
    from mmcl.data.images.levels import check_file as check_image
    from mmcl.search import Index
    from mmcl.search.hits import SUFFIXES

    if save is not None:
        check_folder(save, flag="--save")
        Index.check_place(save)
    if picture is not None:
        check_file(picture, flag="--picture", suffixes=SUFFIXES, inputs=(image,))
    if image is not None:
        check_image(image, str(image), MAX_BYTES)


def _index(model: str, images: str | None, loaded: Model) -> Index:
    """Loads a saved index, or builds an index of any other data."""
    from mmcl.search import Index

    if images is not None:
        return Index.load(images, loaded) if Index.is_saved(images) else Index.build(images, loaded, progress=True)
    from mmcl.runs.evaluation import evaluated_source

    return Index.build(evaluated_source(Path(model)), loaded, progress=True)
