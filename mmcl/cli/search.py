"""`mmcl search`: search for images by text, images by image, or texts by image."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mmcl.cli.exit import NOTHING, end_partly
from mmcl.cli.options import RARE, Device, Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, check_folder
from mmcl.files.figure import FIGURE_SUFFIXES
from mmcl.interop.available import check_available

if TYPE_CHECKING:
    from mmcl.search import Hits, Index


def search(
    model: str,
    text: str | None = None,
    /,
    *,
    image: tuple[Path, ...] = (),
    images: str | None = None,
    target: Literal["images", "texts"] = "images",
    top_k: int = 10,
    save: Path | None = None,
    picture: Path | None = None,
    where: Annotated[str | None, RARE] = None,
    negative: Annotated[tuple[str, ...], RARE] = (),
    like: Annotated[tuple[str, ...], RARE] = (),
    sort: Annotated[Literal["none", "taken", "-taken"], RARE] = "none",
    min_score: Annotated[float | None, RARE] = None,
    min_match: Annotated[float | None, RARE] = None,
    hybrid: Annotated[bool, RARE] = False,
    exact: Annotated[bool, RARE] = False,
    rescore: Annotated[int | None, RARE] = None,
    copy_to: Annotated[Path | None, RARE] = None,
    dim: Annotated[int | None, RARE] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Search images by a text, by an image, or by both.

    Examples:
        mmcl search runs/clip_emoji "a crying face"
        mmcl search runs/clip_emoji --image photos/cat.png --images photos/

    Images of the collection that cannot be read are listed, and the exit code is then 1; it is 3 if nothing was found. An index
    that `mmcl index build` has made may stand in place of the model; it is searched without encoding any image again.

    Args:
        model: A run directory, an index, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        text: What to look for, in quotes.
        image: An image to look for. Several share the weight of one; with a text, both count the same.
        images: A folder, a table or a saved index to search in. Default: what the run was evaluated on.
        target: Find images, or the captions that they have.
        top_k: How many to find.
        save: Keep the index in this folder. Give it as --images next time, and nothing is encoded again.
        picture: Draw the query and what was found into one file. With ranks and scores; a .png, .jpg, .webp, .pdf, ...
        where: Look only among these. Such as 'taken >= 2020-01-01 and folder under "trip"'; columns are id, path, folder,
            captions, label, size, width, height, taken and your own.
        negative: What is not wanted, in quotes. It has half the weight of the text.
        like: Ids of images in the index to look for, as --json prints them.
        sort: Sort what is nearly as good as the best by date, newest first with -taken.
        min_score: Leave out what scores less. A cosine, such as 0.2.
        min_match: Leave out what is less likely a match, 0 to 1. It needs an index that was calibrated.
        hybrid: Also look for the words in the captions, and join both rankings. An index on disk only.
        exact: Compare all vectors, although the index has narrow rows or an approximate one.
        rescore: Times as many images whose vectors are compared, 10 by default. Of an index with narrow rows.
        copy_to: Copy what was found into this folder, with the rank before each name.
        dim: Width: only the first columns of the vectors, scaled to unit length. For a model trained with train.matryoshka.
        json: Print JSON instead of text. It is one list: [{"name": ..., "score": ..., "caption": ..., "id": ...}].
    """
    model, text = _in_order(model, text, (*image, *like))
    if not Path(model).exists() and "://" not in model:  # before libraries are imported that an index needs
        check_available(model)
    _check(image, save, picture, copy_to)
    index = index_of(model, images, device, image, dim)
    if save is not None:
        index.save(save)
    question: dict[str, Any] = {
        **{"image": list(image), "like": list(like), "negative": list(negative), "where": where, "top_k": top_k},
        **{"target": target, "sort": None if sort == "none" else sort, "min_score": min_score, "min_match": min_match},
    }
    hits = index.search(text, hybrid=hybrid, exact=exact, rescore=rescore, **question)
    if picture is not None:
        hits.save(picture)
    if copy_to is not None:
        hits.copy_to(copy_to)
    _print(hits, json)
    end_partly([] if index.is_saved(images or model) else index.bad, code=0 if hits else NOTHING)


def _print(hits: Hits, json: bool) -> None:
    if json:
        show(json_module.dumps([hit.to_dict() for hit in hits], ensure_ascii=False, indent=1))
        return
    for rank, hit in enumerate(hits, 1):
        match = "" if hit.match is None else f"  match {hit.match:.2f}"
        say(f"{rank:3}  {hit.score:6.3f}{match}  {hit.name}" + (f"  {hit.caption}" if hit.caption else ""))
    if not hits.exact:
        say("approximate: some may be missing (--exact compares all; `mmcl index recall` measures it)", error=True)
    if not hits:
        say("nothing found that the filter and the lowest score let through", error=True)


def _in_order(model: str, text: str | None, others: Sequence[object]) -> tuple[str, str | None]:
    """Returns the model and the text, which may stand the other way round if only the second one can be a model.

    Raises:
        UserError: there is no model or nothing to look for; says which word was taken for what.
    """
    from mmcl.interop.suggestions import may_be_model

    if text is not None and may_be_model(text) and not may_be_model(model):
        model, text = text, model
    sought = bool((text or "").strip())
    if not sought and not others and not may_be_model(model):
        raise UserError(
            f"{model!r} was taken for the model, and there is nothing to look for: mmcl search MODEL TEXT, such as mmcl search "
            f'runs/clip_emoji "{model}"'
        )
    if not sought and not others:
        raise UserError(f'nothing to look for in {model!r}: give a text in quotes, such as "a red apple", or --image IMAGE')
    return model, text


def _check(image: Sequence[Path], save: Path | None, picture: Path | None, copy_to: Path | None) -> None:
    """Raises UserError for errors that would otherwise appear only after a collection is embedded."""
    from mmcl.data.images.decode import MAX_BYTES
    from mmcl.data.images.levels import check_file as check_image
    from mmcl.search import Index

    if save is not None:
        check_folder(save, flag="--save")
        Index.check_place(save)
    if copy_to is not None:
        check_folder(copy_to, flag="--copy_to")
    if picture is not None:
        check_file(picture, flag="--picture", suffixes=FIGURE_SUFFIXES, inputs=image)
    for one in image:
        check_image(one, str(one), MAX_BYTES)


def index_of(model: str, images: str | None, device: str | None, image: Sequence[Path] = (), dim: int | None = None) -> Index:
    """Opens an index, or builds one of any other data. The model reads the images that are looked for first.

    Raises:
        UserError: an index is of another width than `dim`, or the model has no such width.
    """
    from mmcl.interop.suggestions import may_be_index
    from mmcl.search import Index

    if Index.is_saved(model) or may_be_index(model):
        if images is not None:
            raise UserError(f"{model} is an index, and --images {images} another collection: give the index alone")
        return _of_dim(Index.open(model, device=device), model, dim)
    check_available(model)
    from mmcl.data.images.tensors import read_pixels
    from mmcl.interop.load import load_model

    loaded = load_model(model, device=device)
    for one in image:
        read_pixels(one, loaded.preprocess)
    if images is not None and Index.is_saved(images):
        return _of_dim(Index.load(images, loaded), images, dim)
    if images is not None:
        return Index.build(images, loaded, dim=dim, progress=True)
    from mmcl.runs.evaluation import evaluated_source

    return Index.build(evaluated_source(Path(model)), loaded, dim=dim, progress=True)


def _of_dim(index: Index, place: str, dim: int | None) -> Index:
    """Returns an index. Raises UserError if it is of another width than was asked for."""
    if dim not in (None, index.store.dim):
        raise UserError(
            f"{place}: holds vectors of {index.store.dim} columns, not {dim}: leave --dim out, or build another index"
        )
    return index
