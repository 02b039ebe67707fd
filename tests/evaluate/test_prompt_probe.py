"""The probe that starts at the texts of the classes: its optimum, its two ends, and how its strength is chosen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Task, few_shot, zero_shot
from mmcl.evaluate.evaluators.few_shot import evaluate_few_shot
from mmcl.evaluate.evaluators.prompt_probe import STRENGTHS, PromptProbe, fit_prompt_probe
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.evaluate.toys import normalized
from tests.narrow import present

SCALE, CLASSES = 8.0, 4


def data(rows: int, *, noise: float = 0.7, seed: int = 0, off: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images near the means of their classes, the classes, and texts that are off these means."""
    rng = np.random.default_rng(seed)
    means = normalized(np.random.default_rng(99).normal(size=(CLASSES, 6)))
    label = np.arange(rows) % CLASSES
    texts = normalized(means + off * np.random.default_rng(98).normal(size=means.shape))
    return normalized(means[label] + noise * rng.normal(size=(rows, 6))), label, texts


def fitted(image: np.ndarray, label: np.ndarray, texts: np.ndarray, c: float | None) -> PromptProbe:
    arrays = (torch.from_numpy(one) for one in (image, label, texts))
    return fit_prompt_probe(*arrays, logit_scale=SCALE, c=c)


@pytest.mark.parametrize("c", [0.1, 30.0])
def test_the_optimum_is_that_of_scipy(c: float) -> None:
    image, label, texts = data(24)

    def objective(flat: np.ndarray) -> float:
        weight = flat.reshape(texts.shape)
        likelihood = log_softmax(image @ weight.T, axis=1)[np.arange(len(image)), label].mean()
        return float(((weight - SCALE * texts) ** 2).sum() / (2 * c * len(image)) - likelihood)

    found = fitted(image, label, texts, c)
    expected = minimize(objective, np.zeros(texts.size), method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(found.weight_CD.numpy().ravel(), expected.x, atol=2e-3)
    assert objective(found.weight_CD.numpy().ravel()) <= expected.fun + 1e-7
    assert found.converged


def test_a_large_penalty_stays_at_the_texts() -> None:
    image, label, texts = data(24)
    np.testing.assert_allclose(fitted(image, label, texts, 1e-7).weight_CD, SCALE * texts, atol=1e-5)


def test_without_a_penalty_it_is_the_plain_probe_wherever_it_starts() -> None:
    """Of images that no linear classifier separates, so that there is a best one; the texts do not matter."""
    image, label, texts = data(200, noise=2.0)
    plain = LogisticRegression(C=np.inf, fit_intercept=False, max_iter=1000, tol=1e-8).fit(image, label)
    for start in (texts, texts[::-1].copy()):
        found = fitted(image, label, start, float("inf"))
        assert found.converged
        np.testing.assert_allclose(softmax(image @ found.weight_CD.numpy().T, axis=1), plain.predict_proba(image), atol=1e-3)


def test_without_images_it_is_zero_shot() -> None:
    image, label, texts = data(60)
    probe = fitted(image[:0], label[:0], texts, None)
    assert np.array_equal(probe.weight_CD, SCALE * texts)
    report = few_shot(image[:20], label[:20], image, label, shots=[1], seeds=2, class_emb=texts, logit_scale=SCALE)
    expected = zero_shot(image, label, texts, top_k=[1]).metrics[0]
    [found] = [row for row in report.metrics if row.metric == "few_shot_prompts_0_top1"]
    assert (found.value, found.low, found.high, found.n) == (expected.value, expected.low, expected.high, expected.n)


@pytest.mark.parametrize("per_class", [1, 5])
def test_the_strength_is_the_largest_that_is_as_good_on_left_out_images(per_class: int) -> None:
    image, label, texts = data(CLASSES * per_class, off=0.6)
    fold = np.array([(place + number) % 3 for place in range(per_class) for number in range(CLASSES)])
    loss = np.zeros((len(image), len(STRENGTHS)))
    for left, (number, c) in itertools.product(np.unique(fold), enumerate(STRENGTHS)):
        kept = fold != left
        weight = fitted(image[kept], label[kept], texts, c).weight_CD.numpy()
        for row in np.flatnonzero(~kept):
            loss[row, number] = -log_softmax(weight @ image[row])[label[row]]
    best = loss.mean(axis=0).argmin()
    error = [np.std(loss[:, number] - loss[:, best]) / np.sqrt(len(image)) for number in range(len(STRENGTHS))]
    near = [c for c, one, own in zip(STRENGTHS, error, loss.mean(axis=0), strict=True) if own - loss[:, best].mean() <= one]
    chosen = fitted(image, label, texts, None)
    assert chosen.c == near[0]
    np.testing.assert_allclose(chosen.weight_CD, fitted(image, label, texts, chosen.c).weight_CD)


def test_with_few_images_it_is_better_than_the_texts_and_than_the_plain_probe() -> None:
    (train, label, texts), test = data(200, seed=1, off=0.6), data(2000, seed=2)
    report = few_shot(train, label, *test[:2], shots=[1, 4, 16], seeds=2, class_emb=texts, logit_scale=SCALE)
    alone = present(report["few_shot_prompts_0_top1"])
    assert present(report["few_shot_prompts_1_top1"]) > present(report["few_shot_1_top1"]) + 0.05
    assert present(report["few_shot_prompts_4_top1"]) > present(report["few_shot_4_top1"]) + 0.01
    assert present(report["few_shot_prompts_16_top1"]) > alone + 0.01


def test_a_probe_that_has_not_converged_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcl.evaluate.evaluators.prompt_probe._MAX_ITER", 1)
    image, label, texts = data(20)
    options: dict[str, Any] = {"shots": [1, 2], "seeds": 2, "class_emb": texts, "logit_scale": SCALE, "prompt_c": 100.0}
    told = few_shot(image, label, image, label, data="photos", **options)
    assert told.notes == ("few_shot, photos, trained: 4 probes from texts did NOT converge (lower prompt_c).",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_c": 0.0}, "prompt_c must be above 0"),
        ({"prompt_c": float("nan")}, "prompt_c must be above 0"),
        ({"logit_scale": None}, "class_emb and logit_scale go together"),
        ({"train_labels": ["a", "b"] * 10}, "train_labels are the numbers of its rows, 0 to 3, not strings"),
        ({"class_emb": np.eye(6)[:3]}, "train_labels must be from 0 to 2"),
        ({"class_emb": np.eye(4)}, "train_emb and class_emb"),
    ],
)
def test_bad_input_is_a_user_error(change: dict[str, Any], message: str) -> None:
    image, label, texts = data(20)
    given: dict[str, Any] = {
        "train_emb": image,
        "train_labels": label,
        "test_emb": image,
        "test_labels": label,
        "shots": [1],
        "seeds": 1,
    }
    if "train_labels" in change:
        given["test_labels"] = change["train_labels"]
    with pytest.raises(UserError, match=message):
        few_shot(**(given | {"class_emb": texts, "logit_scale": SCALE} | change))


@pytest.mark.parametrize(
    ("args", "change", "message"),
    [
        ({"templates": "a {}"}, {}, "templates and prompt_c are for prompts"),
        ({"prompts": True, "prompt_c": -1.0}, {}, "prompt_c must be above 0"),
        ({"prompts": True}, {"has_text": False}, "needs a model with a text tower"),
        ({"prompts": True}, {"logit_scale": None}, "trained without a temperature"),
    ],
)
def test_prompts_that_cannot_be_had_are_a_user_error(args: dict[str, Any], change: dict[str, Any], message: str) -> None:
    model = PatternModel()
    for name, value in change.items():
        setattr(model, name, value)
    task = Task("patterns", PatternSource(12, seed=0), PatternSource(12, seed=1), baselines=False)
    with pytest.raises(UserError, match=message):
        evaluate_few_shot(CachedModel(model), task, shots=[1], **args)


def test_too_many_shots_have_no_value_and_baselines_stand_beside() -> None:
    task = Task("patterns", PatternSource(24, seed=0), PatternSource(12, seed=1))
    report = evaluate_few_shot(CachedModel(PatternModel()), task, shots=[2, 50], seeds=2, prompts=True)
    by_model = {(row.metric, row.model): row.value for row in report.metrics}
    assert by_model["few_shot_prompts_50_top1", "trained"] is None
    assert by_model["few_shot_prompts_2_top1", "trained"] is not None
    assert {model for metric, model in by_model if metric == "few_shot_prompts_2_top1"} == {"trained"}
    assert {"majority", "chance"} < {model for metric, model in by_model if metric == "few_shot_2_top1"}
