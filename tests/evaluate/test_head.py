"""Saved heads: they score as what they were saved from, on their own model alone, and nothing else is read as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from mmcl import HeadClassifier, ZeroShotClassifier
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS, CachedModel, Head, Report, Task
from mmcl.evaluate.evaluators.linear_probe import _probed
from mmcl.evaluate.measures.thresholds import calibration_part
from mmcl.evaluate.reporting.report import head_file
from mmcl.testing.patterns import NAMES, PatternModel, PatternSource
from tests.evaluate.test_prompt_pairs import Crowd
from tests.evaluate.toys import unit
from tests.narrow import present

PAIRS: dict[str, Any] = {"negative": {name: [NAMES[5]] for name in NAMES[1:3]}}


def learned(evaluator: str, model: PatternModel, source: PatternSource, **args: Any) -> tuple[Head, Report]:
    task = Task("patterns", source, PatternSource(60, seed=1), baselines=False)
    report = EVALUATORS.build(evaluator, args, CachedModel(model), task)
    [(name, content)] = report.heads.items()
    assert name == f"{evaluator}, patterns, trained"
    path = Path("head.safetensors")
    path.write_bytes(content)
    return Head.load(path), report


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("options", [{}, {"solver": "adamw", "epochs": 2}], ids=["lbfgs", "adamw"])
def test_the_head_of_a_probe_predicts_what_the_probe_predicts(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    train, test = (np.pad(unit((80, 11), seed), ((0, 0), (0, 1))) for seed in (0, 1))  # a column that is always 0
    labels = rng.integers(3, size=80)
    settings = {"solver": options.get("solver", "lbfgs"), "given": {"epochs": options.get("epochs")}}
    _, _, fit = _probed((train, labels), (test, labels), (None, None), **settings, clusters=None, data="", model="")
    head = Head(fit.weight_DC.T.numpy(), fit.bias_C.numpy(), ("a", "b", "c"), "m", "softmax")
    expected = fit.predict(torch.from_numpy(test))
    assert head.logits(test).argmax(axis=1).tolist() == expected.tolist()


def test_a_probe_names_classes_and_says_how_it_was_fitted() -> None:
    model, source = PatternModel(), PatternSource(36, seed=0)
    head, report = learned("linear_probe", model, source)
    assert head.class_names == tuple(NAMES)
    assert present(head.how)["solver"].startswith("standardized features, C = 0.316; L-BFGS converged")
    found = HeadClassifier(model, head)(source, top_k=1)
    right = [one[0]["label"] == NAMES[row % len(NAMES)] for row, one in enumerate(found)]
    assert np.mean(right) == report["linear_top1"]


def test_few_shots_from_prompts_leave_the_probe_that_was_evaluated() -> None:
    model, source = PatternModel(), PatternSource(36, seed=0)
    options: dict[str, Any] = {"shots": [1, 3], "seeds": 1, "prompts": True, "prompt_c": 10.0, "templates": "a {}"}
    head, report = learned("few_shot", model, source, **options)
    expected = {"evaluator": "few_shot", "data": "patterns", "shots": "3", "c": "10", "templates": '["a {}"]'}
    assert (head.class_names, head.how) == (tuple(NAMES), expected)
    found = HeadClassifier(model, head)(source, top_k=1)
    right = [one[0]["label"] == NAMES[row % len(NAMES)] for row, one in enumerate(found)]
    assert np.mean(right) == report["few_shot_prompts_3_top1"]


@pytest.mark.parametrize("bias", [None, -3.0], ids=["softmax", "sigmoid"])
def test_a_zero_shot_head_scores_as_its_classifier(bias: float | None) -> None:
    model, source = PatternModel(logit_bias=bias), PatternSource(12, seed=0)
    classify = ZeroShotClassifier(model, NAMES, ["{}", "a {}"])
    classify.head().save("own.safetensors")
    head, _ = learned("zero_shot", model, source, templates=["{}", "a {}"])
    for one in (head, Head.load("own.safetensors")):
        assert json.loads(present(one.how)["templates"]) == ["{}", "a {}"]
        for ours, theirs in zip(HeadClassifier(model, one)(source), classify(source), strict=True):
            assert [row["label"] for row in ours] == [row["label"] for row in theirs]
            assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    without = PatternModel()
    without.logit_scale = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="trained without a temperature"):
        ZeroShotClassifier(without, NAMES).head()


def test_a_head_of_prompt_pairs_answers_as_the_report_counts() -> None:
    model, source = PatternModel(), Crowd()
    head, report = learned("prompt_pairs", model, source, **PAIRS)
    [table] = report.details.values()
    assert head.thresholds == tuple(table["threshold"])
    assert "the largest F1 on" in present(head.how)["thresholds"]
    answers = HeadClassifier(model, "head.safetensors")(source)
    rest = np.flatnonzero(~calibration_part(present(source.groups), len(source), 0.5))
    for number, name in enumerate(NAMES[1:3]):
        said = [next(one["yes"] for one in answers[row] if one["label"] == name) for row in rest]
        counts = [
            sum(yes and present(source.targets)[row, number] == truth for row, yes in zip(rest, said, strict=True))
            for truth in (1, 0)
        ]
        assert counts == [table["true_positives"][number], table["false_positives"][number]]
    with pytest.raises(UserError, match="has thresholds of its own"):
        HeadClassifier(model, head, reject=0.5)


def test_a_class_without_a_threshold_is_not_answered_and_the_surest_yes_is_first() -> None:
    weight = np.zeros((3, 192))
    head = Head(weight, np.array([5.0, 1.0, 0.0]), ("a", "b", "c"), "patterns", "sigmoid", (6.0, None, -3.0))
    [found] = HeadClassifier(PatternModel(), head)([np.zeros((8, 8, 3), np.uint8)])
    assert [(one["label"], one["yes"]) for one in found] == [("c", True), ("a", False), ("b", None)]


def test_a_report_keeps_its_heads_and_a_forged_one_is_noticed(tmp_path: Path) -> None:
    _, report = learned("zero_shot", PatternModel(), PatternSource(12, seed=0))
    report.write(tmp_path / "report")
    assert Report.load(tmp_path / "report") == report
    path = tmp_path / "report" / head_file("zero_shot, patterns, trained")
    assert path.name == "head_zero_shot_patterns_trained.safetensors"
    assert Head.load(path).class_names == tuple(NAMES)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="is not of the same report"):
        Report.load(tmp_path / "report")


def test_the_head_of_another_model_is_refused_in_a_line() -> None:
    other = Head(np.eye(2), np.zeros(2), ("a", "b"), "f" * 64, "softmax")
    with pytest.raises(UserError, match=r"another model \(ffffffffffff, and this one is patterns\)") as error:
        HeadClassifier(PatternModel(), other)
    assert "\n" not in str(error.value)
    other.save("other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors: fitted on the embeddings of another model"):
        HeadClassifier(PatternModel(), "other.safetensors")


def written(**change: Any) -> Path:
    head = Head(np.eye(2), np.zeros(2), ("a", "b"), "m", "sigmoid", (0.5, None), {"evaluator": "x"})
    content = head.to_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["mmcl_head"]) | {
        key: value for key, value in change.items() if key not in ("weight", "bias")
    }
    tensors = load(content) | {key: change[key] for key in ("weight", "bias") if key in change}
    Path("forged.safetensors").write_bytes(save(tensors, {"mmcl_head": json.dumps(facts)}))
    return Path("forged.safetensors")


def test_what_is_read_is_what_was_written() -> None:
    found = Head.load(written())
    assert (found.class_names, found.model, found.probability, found.thresholds) == (("a", "b"), "m", "sigmoid", (0.5, None))
    assert found.how == {"evaluator": "x"}
    assert np.array_equal(found.weight_CD, np.eye(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.full((2, 2), np.nan)}, "must be finite float64"),
        ({"weight": np.eye(2, dtype=np.float32)}, "must be finite float64"),
        ({"weight": np.eye(3)}, r"a head of 2 classes has weights of shape \[3, 3\]"),
        ({"weight": np.zeros((2, 0))}, r"has weights of shape \[2, 0\]"),
        ({"bias": np.zeros((2, 2))}, r"has a bias of shape \[2, 2\]"),
        ({"class_names": ["a", "a"]}, "must be different, and none empty"),
        ({"class_names": ["a", " "]}, "must be different, and none empty"),
        ({"class_names": []}, "a head of 0 classes"),
        ({"thresholds": [1.0]}, "a head of 2 classes has 1 thresholds"),
        ({"thresholds": [1.0, float("inf")]}, "forged.safetensors"),
        ({"probability": "argmax"}, "probability is 'argmax'; choose one of 'softmax', 'sigmoid'"),
        ({"format_version": 2}, "a head of format 2, and this version of mmcl reads 1"),
        ({"run": "me"}, "unknown key 'run'"),
    ],
)
def test_a_forged_head_is_refused_in_a_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Head.load(written(**change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04cos\nsystem\n.", save({"weight": np.eye(2)}), save({"weight": np.eye(2), "bias": np.zeros(2)}, {"a": "b"})],
    ids=["empty", "a pickle", "tensors", "other tensors"],
)
def test_what_is_no_head_is_refused_in_a_line(content: bytes) -> None:
    Path("a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: (not a head|damaged)") as error:
        Head.load("a.safetensors")
    assert "\n" not in str(error.value)
