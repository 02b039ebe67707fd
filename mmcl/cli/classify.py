"""`mmcl classify`: classification of images by text prompts or by a trained classifier."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from mmcl.cli.exit import end_partly
from mmcl.cli.output import say, show
from mmcl.errors import UserError

if TYPE_CHECKING:
    from mmcl.evaluate.classifier import Classifier
    from mmcl.preprocess import Preprocess
    from mmcl.types import BadSample


def classify(
    images: Positional[tuple[Path, ...]],
    /,
    *,
    labels: tuple[str, ...] = (),
    template: tuple[str, ...] = (),
    model: str = "runs/clip_emoji",
    top_k: int = 5,
    json: bool = False,
) -> None:
    """Classify images by text prompts, without training: mmcl classify cat.png --labels cat dog

    Without --labels, by the classes of a model that was trained with labels: mmcl classify 7.png --model runs/supervised_digits

    Images that cannot be read are listed, and the exit code is then 1.

    Args:
        images: Image files.
        labels: The candidate labels, e.g. cat dog "red car".
        template: Sentences with {} where the label goes; several are averaged. Default: the label alone.
        model: A run directory, open_clip:ARCH/PRETRAINED or hf:ID.
        top_k: How many labels to show per image, the likeliest first.
        json: Print one JSON list: [{"image": ..., "labels": [{"label": ..., "score": ...}]}].
    """
    if not images:
        raise UserError("no image given: mmcl classify IMAGE ... --labels LABEL ...")
    if template and not labels:
        raise UserError("--template has no use without --labels")
    from mmcl.evaluate.classifier import TrainedClassifier, ZeroShotClassifier
    from mmcl.interop.load import load_model

    loaded = load_model(model)
    if not labels and loaded.class_names is None:
        raise UserError(f"{model} was not trained with labels and has none of its own; give --labels")
    classifier: Classifier = ZeroShotClassifier(loaded, labels, template or "{}") if labels else TrainedClassifier(loaded)
    found, bad = _classified(classifier, images, top_k, loaded.preprocess)
    if json:
        rows = [{"image": str(path), "labels": likeliest} for path, likeliest in found]
        show(json_module.dumps(rows, ensure_ascii=False, indent=1))
    else:
        for path, likeliest in found:
            say(str(path))
            for prediction in likeliest:
                say(f"  {prediction['score']:6.1%}  {prediction['label']}")
    end_partly(bad)


def _classified(
    classifier: Classifier, images: Sequence[Path], top_k: int, preprocess: Preprocess
) -> tuple[list[tuple[Path, list[dict[str, Any]]]], list[BadSample]]:
    """Returns the labels by image, and the unreadable images. Raises UserError if no image is readable."""
    from mmcl.data.images.image_cache import unreadable
    from mmcl.data.source import Sample

    bad: list[BadSample] = []
    try:
        labels = classifier(list(images), top_k=top_k)
    except UserError:
        bad = unreadable([Sample(str(path), path) for path in images], preprocess)
        if len(bad) in (0, len(images)):
            raise
        left_out = {one.index for one in bad}
        images = [path for number, path in enumerate(images) if number not in left_out]
        labels = classifier(list(images), top_k=top_k)
    return list(zip(images, labels, strict=True)), bad
