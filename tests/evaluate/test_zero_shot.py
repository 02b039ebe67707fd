"""Zero-shot metrics against scikit-learn; prompts and the classifier against their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mmcl.errors import UserError
from mmcl.evaluate import ZeroShotClassifier, class_embeddings, zero_shot
from mmcl.evaluate.classifier import NONE_OF_THESE
from mmcl.evaluate.evaluators.zero_shot import macro_f1
from mmcl.evaluate.prompts import Templates
from mmcl.testing.patterns import NAMES, PatternModel, PatternSource, pattern
from tests.evaluate.toys import normalized, unit
from tests.narrow import present

CLASSES = 7


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    class_emb, labels = unit((CLASSES, 16), 1), rng.integers(CLASSES, size=150)
    noise = 0.5 * unit((150, 16), 2) + 0.35 * rng.normal(size=(150, 16)).astype(np.float32)
    return class_emb[labels] + noise, labels, class_emb


def cosine(image: np.ndarray, class_emb: np.ndarray) -> np.ndarray:
    return normalized(image) @ class_emb.astype(np.float64).T


def test_equals_scikit_learn() -> None:
    image, labels, class_emb = data()
    report = zero_shot(image, labels, class_emb, class_names=list("abcdefg"), top_k=(1, 3, 5))
    score = cosine(image, class_emb)
    predicted = score.argmax(1)
    assert 0.2 < present(report["zero_shot_top1"]) < 0.9
    for k in (1, 3, 5):
        assert report[f"zero_shot_top{k}"] == pytest.approx(top_k_accuracy_score(labels, score, k=k))
    assert report["zero_shot_mean_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    confusion, per_class = report.details.values()
    expected = precision_recall_fscore_support(labels, predicted, labels=range(CLASSES))
    for name, values in zip(("precision", "recall", "f1", "n"), expected, strict=True):
        assert per_class[name] == pytest.approx(list(values)), name
    assert report["zero_shot_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert confusion["classes"] == list("abcdefg")
    np.testing.assert_array_equal(confusion["counts"], confusion_matrix(labels, predicted, labels=range(CLASSES)))


@pytest.mark.parametrize(("scale", "bias"), [(30.0, None), (10.0, -4.0)])
def test_calibration_error_equals_a_loop_over_bins(scale: float, bias: float | None) -> None:
    image, labels, class_emb = data()
    logits = scale * cosine(image, class_emb)
    exp = np.exp(logits)
    probability = exp / exp.sum(1, keepdims=True) if bias is None else 1 / (1 + np.exp(-logits - bias))
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (probability.max(1) >= low) & (probability.max(1) < low + 1 / 15)
        if inside.any():
            right = (probability.argmax(1) == labels)[inside].mean()
            expected += inside.mean() * abs(right - probability.max(1)[inside].mean())
    report = zero_shot(image, labels, class_emb, logit_scale=scale, logit_bias=bias)
    assert report["zero_shot_ece"] == pytest.approx(expected, abs=1e-5)
    target = np.eye(CLASSES)[labels]
    assert report["zero_shot_brier"] == pytest.approx(((probability - target) ** 2).sum(1).mean(), abs=1e-5)
    if bias is None:
        assert report["zero_shot_brier"] == pytest.approx(brier_score_loss(labels, probability, scale_by_half=False), abs=1e-5)
        assert report["zero_shot_nll"] == pytest.approx(log_loss(labels, probability), abs=1e-5)
    else:
        likelihood = np.where(target == 1, probability, 1 - probability)
        assert report["zero_shot_nll"] == pytest.approx(-np.log(likelihood).sum(1).mean(), abs=1e-5)


def test_the_union_of_labels_and_predictions_counts_in_macro_f1() -> None:
    labels, predicted = np.array([0, 0, 1, 4]), np.array([0, 2, 1, 1])
    expected = f1_score(labels, predicted, average="macro")
    assert macro_f1(labels, predicted, 6).value == pytest.approx(expected)
    assert expected == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4), "classes 3 and 5 are in neither, 2 and 4 in one"


def test_classes_without_samples_and_chunks() -> None:
    image, labels, class_emb = data()
    kept = labels != 3
    report = zero_shot(image[kept], labels[kept], class_emb)
    right = cosine(image, class_emb).argmax(1) == labels
    expected = [right[labels == label].mean() for label in range(CLASSES) if label != 3]
    assert report["zero_shot_mean_class_recall"] == pytest.approx(np.mean(expected))
    assert report.notes == ("zero_shot: 6 of 7 classes have samples.",)
    assert zero_shot(image, labels, class_emb).notes == ()
    assert zero_shot(image[kept], labels[kept], class_emb, chunk_size=11) == report


def test_a_collapsed_model_scores_k_over_classes_and_too_few_classes_have_no_value() -> None:
    report = zero_shot(np.ones((60, 5)), np.arange(60) % 4, np.ones((4, 5)), top_k=(1, 2, 5))
    assert report["zero_shot_top1"] == pytest.approx(1 / 4)
    assert report["zero_shot_top2"] == pytest.approx(2 / 4)
    assert report["zero_shot_top5"] is None
    assert report["zero_shot_tied"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(150, 7)}, "label 7 of row 0 is not one of the 7 classes, 0 to 6"),
        ({"labels": np.full(150, -1)}, "label -1"),
        ({"class_names": ["a"]}, "1 class_names for the 7 rows"),
        ({"class_emb": np.full((7, 16), np.nan)}, "class_emb has 7 rows that are not finite"),
        ({"top_k": (0,)}, "top_k"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = dict(zip(("image_emb", "labels", "class_emb"), data(), strict=True))
    with pytest.raises(UserError, match=message):
        zero_shot(**(args | change))


class SpellingModel:
    """Embeds a text by counting its letters, so that every word of a sentence shows."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[1 + text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)


def mean_of(*texts: str) -> np.ndarray:
    mean = normalized(SpellingModel().encode_text(texts)).mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


@pytest.mark.parametrize(
    ("templates", "sentences"),
    [
        ("{}", ["cat"]),
        ("a photo of a {c}.", ["a photo of a cat."]),
        (str.upper, ["CAT"]),
        (["a {}", lambda name: name * 2], ["a cat", "catcat"]),
        ({"cat": ["it purrs", "it meows"], "dog{}": ["it barks"]}, ["it purrs", "it meows"]),
        ("a {style} {}", ["a {style} cat"]),
    ],
)
def test_class_embedding_is_the_unit_mean_of_unit_texts(templates: Templates, sentences: list[str]) -> None:
    found = class_embeddings(SpellingModel(), ["dog{}", "cat"], templates)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1], mean_of(*sentences), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("name", "count"), [("openai_imagenet", 80), ("simple_imagenet", 7)])
def test_templates_by_name_are_those_of_open_clip(name: str, count: int) -> None:
    import open_clip

    sentences = [template("cat") for template in getattr(open_clip, f"{name.upper()}_TEMPLATES")]
    assert len(sentences) == count
    np.testing.assert_allclose(class_embeddings(SpellingModel(), ["cat"], name)[0], mean_of(*sentences), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], "{}", "must be a list"),
        ("cat", "{}", "must be a list"),
        (["cat", " "], "{}", "class name 1 is empty"),
        (["cat", "dog", "cat"], "{}", "'cat' is given twice"),
        (["cat"], "a photo", "has no slot"),
        (["cat"], "openai_imagnet", "did you mean 'openai_imagenet'"),
        (["cat"], ["a {}", "simple_imagenet"], "'simple_imagenet' has no slot"),
        (["cat"], [], "no templates"),
        (["cat"], {"dog": ["it barks"]}, "no sentences for class 'cat'"),
    ],
)
def test_bad_names_and_templates_are_user_errors(names: list[str], templates: Templates, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_embeddings(SpellingModel(), names, templates)
    model = PatternModel()
    with pytest.raises(UserError, match=message):
        ZeroShotClassifier(model, names, templates)


@pytest.mark.parametrize("bias", [None, -5.0])
def test_classifier_scores_are_the_models_probabilities(bias: float | None) -> None:
    model = PatternModel(logit_bias=bias)
    classifier = ZeroShotClassifier(model, candidate_labels=NAMES, templates=["{}", "the {}"])
    results = classifier([pattern(4), pattern(1)], top_k=None)
    image, text = model.encode_image([pattern(4), pattern(1)]), model.encode_text(NAMES)
    logits = 20.0 * image.astype(np.float64) @ text.T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if bias is None else 1 / (1 + np.exp(-logits - bias))
    for row, result in zip(expected, results, strict=True):
        assert [entry["label"] for entry in result] == [NAMES[n] for n in np.argsort(-row)]
        np.testing.assert_allclose([entry["score"] for entry in result], np.sort(row)[::-1], atol=1e-5)
    assert results[0][0]["label"] == "pattern 4"


def test_classifier_takes_one_image_or_many_and_encodes_the_labels_once(tmp_path: Path) -> None:
    model = PatternModel()
    classifier = ZeroShotClassifier(model, NAMES)
    Image.fromarray(pattern(2)).save(tmp_path / "two.png")
    one_each = (pattern(2), Image.fromarray(pattern(2)), tmp_path / "two.png", str(tmp_path / "two.png"))
    for image in one_each:
        (best,) = classifier(image, top_k=1)
        assert best["label"] == "pattern 2"
    assert [len(result) for result in classifier(list(one_each))] == [5] * 4
    assert len(classifier(PatternSource(7, 0), top_k=99)[0]) == len(NAMES)
    assert classifier([]) == []
    assert model.text_calls == [len(NAMES)]


def test_classifier_rejects_images_of_unknown_classes() -> None:
    classifier = ZeroShotClassifier(PatternModel(), NAMES, reject=0.9)
    known, unknown = classifier([pattern(3), pattern(50)])
    assert known[0]["label"] == "pattern 3"
    (rejected,) = unknown
    assert rejected["label"] == NONE_OF_THESE
    best = ZeroShotClassifier(PatternModel(), NAMES)(pattern(50))[0]
    assert rejected["score"] == pytest.approx(best["score"], abs=1e-5)
    assert rejected["score"] < 0.9


def test_classifier_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="reject must be a probability"):
        ZeroShotClassifier(PatternModel(), NAMES, reject=1.5)
    with pytest.raises(UserError, match="needs a model with a text tower"):
        ZeroShotClassifier(PatternModel(has_text=False), NAMES)
    with pytest.raises(UserError, match="top_k must be at least 1"):
        ZeroShotClassifier(PatternModel(), NAMES)(pattern(0), top_k=0)
