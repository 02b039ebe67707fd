"""`mmcl classify`: pictures to labels, from text prompts or by a classifier that was trained with labels."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from tyro.conf import Positional

from mmcl.errors import UserError


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
    """Classify pictures by text prompts, without training: mmcl classify cat.png --labels cat dog

    Without --labels, by the classes of a model that was trained with labels: mmcl classify 7.png --model runs/supervised_digits

    Args:
        images: Picture files.
        labels: The candidate labels, e.g. cat dog "red car".
        template: Sentences with {} where the label goes; several are averaged. Default: the label alone.
        model: A run directory, open_clip:ARCH/PRETRAINED or hf:ID.
        top_k: How many labels to show per picture, the likeliest first.
        json: Print one JSON list: [{"image": ..., "labels": [{"label": ..., "score": ...}]}].
    """
    if not images:
        raise UserError("no picture given: mmcl classify PICTURE ... --labels LABEL ...")
    if template and not labels:
        raise UserError("--template has no use without --labels")
    from mmcl.evaluate.classifier import Classifier, TrainedClassifier, ZeroShotClassifier
    from mmcl.interop.load import load_model

    loaded = load_model(model)
    if not labels and loaded.class_names is None:
        raise UserError(f"{model} was not trained with labels and has none of its own; give --labels")
    classifier: Classifier = ZeroShotClassifier(loaded, labels, template or "{}") if labels else TrainedClassifier(loaded)
    predictions = classifier(list(images), top_k=top_k)
    if json:
        rows = [{"image": str(path), "labels": found} for path, found in zip(images, predictions, strict=True)]
        print(json_module.dumps(rows, ensure_ascii=False, indent=1))
        return
    for path, found in zip(images, predictions, strict=True):
        print(path)
        for prediction in found:
            print(f"  {prediction['score']:6.1%}  {prediction['label']}")  # type: ignore[index]
