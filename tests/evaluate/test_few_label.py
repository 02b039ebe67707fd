"""Few labels: the drawn subset, an unchanged model, and better results with more labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmcl.data.augment.pipeline import AugmentationPipeline
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Report, Task
from mmcl.evaluate.evaluators.few_label import fine_tune
from mmcl.evaluate.measures.statistics import exact, over_runs
from mmcl.interop.model import Model
from mmcl.testing.patterns import CLASSES, PatternModel, PatternSource
from tests.narrow import present

FAST = {"seeds": 2, "epochs": 20, "batch_size": 12, "lr": 1e-2}


def small_model() -> Model:
    torch.manual_seed(0)
    args = {"image_size": 8, "channels": 3, "feature_dim": 16}
    tower = build_tower(TowerSpec(modality="image", encoder="small_cnn", encoder_args=args, head="none"))
    return Model(torch.nn.ModuleDict({"image": tower}), embedding="features")


def evaluate(model: object, bank: PatternSource | None = None, **args: Any) -> Report:
    task = Task("patterns", PatternSource(36, seed=0), bank or PatternSource(120, seed=1))
    report: Report = EVALUATORS.build("few_label", FAST | args, CachedModel(model), task)  # type: ignore[arg-type]
    return report


def test_a_known_pattern_is_learned_from_two_labels_per_class() -> None:
    report = evaluate(PatternModel(), amounts=[2])
    values = {(row.metric, row.model): present(row.value) for row in report.metrics}
    assert values["few_label_2_per_class_finetuned_top1", "trained"] > 0.9
    assert values["few_label_2_per_class_linear_top1", "trained"] > 0.9
    assert values["few_label_2_per_class_linear_top1", "raw pixels"] > 0.8
    assert values["few_label_2_per_class_finetuned_top1", "chance"] == pytest.approx(1 / CLASSES)


def test_the_model_is_left_as_it_was_and_the_generators_too() -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.towers.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, amounts=[0.1], epochs=2, augment=[{"name": "hflip"}])
    assert all(torch.equal(before[key], value) for key, value in model.towers.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.towers["image"].training


def test_is_a_function_of_its_seed() -> None:
    tower, labels = small_model().towers["image"], torch.arange(24) % 3
    images = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "pipeline": AugmentationPipeline(())}
    runs = [fine_tune(tower, images, labels, np.arange(24), seed=seed, **options) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    weights = [next(iter(run[1].parameters())) for run in runs]  # type: ignore[index]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_frozen_encoder_is_fine_tuned_all_the_same() -> None:
    tower = small_model().towers["image"]
    tower.freeze()  # type: ignore[operator]
    images, labels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2
    options = {"epochs": 1, "batch_size": 8, "lr": 0.1, "pipeline": AugmentationPipeline(()), "seed": 0}
    tuned = fine_tune(tower, images, labels, np.arange(8), **options)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in tuned.parameters())
    assert not any(p.requires_grad for p in tower.encoder.parameters())  # type: ignore[union-attr]


def test_the_interval_is_students() -> None:
    estimate = over_runs([0.6, 0.7, 0.8], 10)
    assert estimate.value == pytest.approx(0.7)
    assert present(estimate.high) - 0.7 == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-5)
    assert over_runs([0.7], 10) == exact(0.7, 10)


@pytest.mark.parametrize(
    ("args", "message"),
    [({"amounts": [1.5]}, "amounts has 1.5"), ({"seeds": 0}, "must be 1 or more"), ({"amounts": [0]}, "amounts has 0")],
)
def test_bad_arguments_are_user_errors(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(small_model(), **args)


def test_a_model_without_an_image_tower_is_a_user_error() -> None:
    model = PatternModel()
    model.towers = {}
    with pytest.raises(UserError, match="does not have"):
        evaluate(model)
