"""`mmcl classify`: classification of images by text prompts or by a trained classifier."""

from __future__ import annotations

import csv
import io
import json as json_module
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcl.cli.exit import end_partly, refuse_all_bad
from mmcl.cli.options import Device, Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_file, write_file
from mmcl.files.listing import is_image, list_files
from mmcl.interop.available import check_available
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.evaluate.classifier import Classifier
    from mmcl.interop.model import Model
    from mmcl.preprocess import Preprocess
    from mmcl.types import BadSample, EmbeddingModel

    Found = list[tuple[Path, list[dict[str, Any]]]]


def classify(
    images: tuple[Path, ...],
    /,
    *,
    labels: tuple[str, ...] = (),
    template: tuple[str, ...] = (),
    head: Path | None = None,
    model: str = "runs/clip_emoji",
    top_k: int = 5,
    out: Path | None = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Classify images by text prompts, or by trained classes.

    Examples:
        mmcl classify photos/cat.png --labels cat dog "red car"
        mmcl classify photos/ --labels cat dog --template "a {}" --out labels.csv

    Images that cannot be read are listed, and the exit code is then 1.

    Args:
        images: Image files, and folders of images.
        labels: Labels to choose from. Without them, the classes of a model that was trained with labels.
        template: Sentences with {} for the label. Several are averaged; by default the label stands alone.
        head: What an evaluation of this model has learned, head_*.safetensors in the folder of its --out. In place of labels;
            with thresholds, it says yes or no to each class.
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        top_k: How many labels to show, the likeliest first.
        out: Write the labels to this .csv or .json. A .csv has the columns image, label, score, a row for each label.
        json: Print JSON instead of text. It is one list: [{"image": ..., "labels": [{"label": ..., "score": ...}]}].
    """
    if not images:
        raise UserError("no image given; images stand before the labels: mmcl classify IMAGE ... --labels LABEL ...")
    if template and not labels:
        raise UserError("--template needs --labels")
    if head is not None and (labels or template):
        raise UserError(f"--head has classes of its own: remove {'--labels' if labels else '--template'}")
    if out is not None:
        check_file(out, flag="--out", suffixes=(".csv", ".json"), inputs=(*images, head))
    paths = [path for given in images for path in _images_of(given)]
    check_available(model)
    from mmcl.interop.load import load_model

    loaded = load_model(model, device=device)
    chosen = _classifier(loaded, model, _separated(labels), template, head)
    found, bad = _classified(chosen, paths, top_k, loaded.preprocess)
    rows = [{"image": str(path), "labels": likeliest} for path, likeliest in found]
    listing = json_module.dumps(rows, ensure_ascii=False, indent=1)
    if out is not None:
        write_file(out, f"{listing}\n" if out.suffix.lower() == ".json" else _csv(found))
    if json:
        show(listing)
    elif out is not None:
        say(f"{counted(len(found), 'image')} in {out}")
    else:
        _print(found)
    end_partly(bad)


def _images_of(path: Path) -> list[Path]:
    """Returns the images in a folder and its subfolders; a file is itself."""
    if not path.is_dir():
        return [path]
    found = [path / name for name in list_files(path).names if is_image(name)]
    if not found:
        raise UserError(f"{path}: this folder has no images")
    return found


def _separated(labels: Sequence[str]) -> list[str]:
    """Splits labels that were given with commas between them: `cat,dog` and `cat, dog`."""
    if len(labels) == 1 or all(label.endswith(",") for label in labels[:-1]):
        return [label.strip() for word in labels for label in word.split(",") if label.strip()]
    return list(labels)


def _classifier(loaded: Model, name: str, labels: list[str], template: Sequence[str], head: Path | None) -> Classifier:
    from mmcl.evaluate.classifier import HeadClassifier, TrainedClassifier, ZeroShotClassifier

    if head is not None:
        return HeadClassifier(_at_width_of(head, loaded), head)
    if not labels and loaded.class_names is None:
        raise UserError(f"{name} was not trained with labels and has none of its own; give --labels, or --head")
    if not labels:
        return TrainedClassifier(loaded)
    if len(labels) == 1 and loaded.logit_bias is None:  # a sigmoid model gives each label a probability of its own
        raise UserError(f"--labels {labels[0]}: one label alone is always 100 %; give at least two to choose from")
    return ZeroShotClassifier(loaded, labels, tuple(template) or "{}")


def _at_width_of(head: Path, loaded: Model) -> EmbeddingModel:
    """The model at the width of a head, which was smaller if the head is from an evaluation with --dim."""
    from mmcl.evaluate.head import Head
    from mmcl.interop.truncated import at_dim

    width = Head.load(head).weight_CD.shape[1]
    return at_dim(loaded, width) if width < loaded.embed_dim else loaded


def _classified(
    classifier: Classifier, images: Sequence[Path], top_k: int, preprocess: Preprocess
) -> tuple[Found, list[BadSample]]:
    """Returns the labels by image, and the unreadable images. Raises UserError if no image is readable."""
    from mmcl.data.images.image_cache import unreadable
    from mmcl.data.sample import Sample

    bad: list[BadSample] = []
    try:
        labels = classifier(list(images), top_k=top_k)
    except UserError:
        bad = unreadable([Sample(str(path), path) for path in images], preprocess)
        refuse_all_bad(bad, len(images))
        if not bad:
            raise
        left_out = {one.index for one in bad}
        images = [path for number, path in enumerate(images) if number not in left_out]
        labels = classifier(list(images), top_k=top_k)
    return list(zip(images, labels, strict=True)), bad


_ANSWERS = {True: "yes", False: "no", None: "-"}


def _print(found: Found) -> None:
    for path, likeliest in found:
        say(str(path))
        for prediction in likeliest:
            answer = f"{_ANSWERS[prediction['yes']]:<3}  " if "yes" in prediction else ""
            say(f"  {prediction['score']:6.1%}  {answer}{prediction['label']}")


def _csv(found: Found) -> str:
    def rows() -> Iterator[tuple[object, ...]]:
        columns = "label", "score", *(("yes",) if any("yes" in one for _, own in found for one in own) else ())
        yield "image", *columns
        for path, likeliest in found:
            yield from ((path, *(one[column] for column in columns)) for one in likeliest)

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows())
    return text.getvalue()
