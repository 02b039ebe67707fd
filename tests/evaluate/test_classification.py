"""Accuracy from a classifier's own logits."""

from __future__ import annotations

import numpy as np
import pytest

from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Task
from mmcl.testing.patterns import CLASSES, PatternModel, PatternSource
from tests.arithmetic import network_tolerance
from tests.evaluate.test_few_label import small_model


def test_counts_the_largest_logits() -> None:
    source, model = PatternSource(36, seed=0), small_model()
    logits = model.image_logits(source)
    expected = (logits.argmax(1) == np.arange(36) % CLASSES).mean()
    source.class_names = [str(n) for n in range(16)]
    bank = PatternSource(60, seed=1)
    bank.class_names = source.class_names
    report = EVALUATORS["classification"](CachedModel(model), Task("patterns", source, bank))
    assert {row.model: row.value for row in report.metrics}["trained"] == pytest.approx(expected)


def test_the_logits_are_not_cut_to_unit_length() -> None:
    model, source = small_model(), PatternSource(5, seed=0)
    logits = model.image_logits(source, batch_size=2)
    assert not np.allclose(np.linalg.norm(logits, axis=1), 1)
    unit_ND = logits / np.linalg.norm(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_ND, model.encode_image(source), atol=network_tolerance(model.towers))


def test_a_head_of_another_width_cannot_classify_these_classes() -> None:
    with pytest.raises(UserError, match="has 6 classes, and the head of the model gives 16 logits"):
        EVALUATORS["classification"](CachedModel(small_model()), Task("patterns", PatternSource(12, seed=0)))


def test_a_perfect_model_is_right() -> None:
    task = Task("patterns", PatternSource(36, seed=0), PatternSource(60, seed=1))
    values = {row.model: row.value for row in EVALUATORS["classification"](CachedModel(PatternModel()), task).metrics}
    assert values == {"trained": 1, "chance": pytest.approx(1 / CLASSES), "majority": pytest.approx(1 / CLASSES)}
