"""`mmcl search`: search for images by text, images by image, or texts by image."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmcl.cli.exit import end_partly
from mmcl.cli.options import Device, Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder
from mmcl.files.figure import FIGURE_SUFFIXES
from mmcl.interop.available import check_available

if TYPE_CHECKING:
    from mmcl.interop.model import Model
    from mmcl.search import Index


def search(
    model: str,
    text: str | None = None,
    /,
    *,
    image: Path | None = None,
    images: str | None = None,
    target: Literal["images", "texts"] = "images",
    top_k: int = 10,
    save: Path | None = None,
    picture: Path | None = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Search images by a text, by an image, or by both.

    Examples:
        mmcl search runs/clip_emoji "a crying face"
        mmcl search runs/clip_emoji --image photos/cat.png --images photos/

    Images of the collection that cannot be read are listed, and the exit code is then 1.

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        text: What to look for, in quotes.
        image: An image to look for. With a text, both count the same.
        images: A folder, a table or a saved index to search in. Default: what the run was evaluated on.
        target: Find images, or the captions that they have.
        top_k: How many to find.
        save: Keep the index in this folder. Give it as --images next time, and nothing is encoded again.
        picture: Draw the query and what was found, with ranks and scores, into one file. A .png, .jpg, .webp, .pdf, ...
        json: Print JSON instead of text. It is one list: [{"name": ..., "score": ..., "caption": ...}].
    """
    model, text = _in_order(model, text, image)
    check_available(model)
    _check(image, save, picture)
    from mmcl.data.images.tensors import read_pixels
    from mmcl.interop.load import load_model

    loaded = load_model(model, device=device)
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


def _in_order(model: str, text: str | None, image: Path | None) -> tuple[str, str | None]:
    """Returns the model and the text, which may stand the other way round if only the second one can be a model.

    Raises:
        UserError: there is no model or nothing to look for; says which word was taken for what.
    """
    from mmcl.interop.suggestions import may_be_model

    if text is not None and may_be_model(text) and not may_be_model(model):
        model, text = text, model
    sought = bool((text or "").strip())
    if not sought and image is None and not may_be_model(model):
        raise UserError(
            f"{model!r} was taken for the model, and there is nothing to look for: mmcl search MODEL TEXT, such as mmcl search "
            f'runs/clip_emoji "{model}"'
        )
    if not sought and image is None:
        raise UserError(f'nothing to look for in {model!r}: give a text in quotes, such as "a red apple", or --image IMAGE')
    return model, text


def _check(image: Path | None, save: Path | None, picture: Path | None) -> None:
    """Raises UserError for errors that would otherwise appear only after a collection is embedded."""
    from mmcl.data.images.decode import MAX_BYTES
    from mmcl.data.images.levels import check_file as check_image
    from mmcl.search import Index

    if save is not None:
        check_folder(save, flag="--save")
        Index.check_place(save)
    if picture is not None:
        check_file(picture, flag="--picture", suffixes=FIGURE_SUFFIXES, inputs=(image,))
    if image is not None:
        check_image(image, str(image), MAX_BYTES)


def _index(model: str, images: str | None, loaded: Model) -> Index:
    """Loads a saved index, or builds an index of any other data."""
    from mmcl.search import Index

    if images is not None:
        return Index.load(images, loaded) if Index.is_saved(images) else Index.build(images, loaded, progress=True)
    from mmcl.runs.evaluation import evaluated_source

    return Index.build(evaluated_source(Path(model)), loaded, progress=True)
