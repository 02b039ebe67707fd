"""Origins of towers: a run's encoder with a new head, some layers of its head, one locked tower and one from scratch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.config import Config, from_dict
from mmcl.errors import UserError
from mmcl.runs.build import build_method
from mmcl.runs.run import train
from mmcl.runs.towers import build_towers
from tests.engine.tiny import make_folder

SMALL = {"name": "small_cnn", "args": {"image_size": 16, "channels": 1, "feature_dim": 32}}
TEXT = {"name": "small_text", "args": {"width": 32, "heads": 2}}
TRAIN = {"batch_size": 16, "steps": 2, "threads": 1}
DIGITS = {"train": {"name": "digits"}}


def config(tree: dict[str, Any]) -> Config:
    return from_dict(Config, {"data": DIGITS, "train": TRAIN, **tree}, "test")


def classifier(**image: Any) -> dict[str, Any]:
    head = {"name": "mlp", "args": {"layers": 1, "embed_dim": 10, "final": "bias"}}
    return {"method": {"name": "supervised"}, "image": {"head": head, **image}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCLR on the digits, two steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "simclr"
    head = {"name": "mlp", "args": {"layers": 3, "hidden_dim": 24, "embed_dim": 8}}
    augment = {"augment": [{"name": "affine", "args": {"rotation": 10}}]}
    tree = {"method": {"name": "simclr"}, "image": {"encoder": SMALL, "head": head}, "data": DIGITS | augment}
    train(config(tree | {"run_dir": str(run_dir)}))
    return run_dir


def test_a_classifier_stands_on_the_encoder_of_a_run(run: Path, tmp_path: Path) -> None:
    trained = mmcl.load_model(run).towers["image"]
    method = build_method(config(classifier() | {"init": str(run)}))
    assert method.tower("image").embed_dim == method.classes == 10
    for key, value in trained.encoder.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(method.tower("image").encoder.state_dict()[key], value)
    result = train(config(classifier() | {"init": str(run), "run_dir": str(tmp_path / "tuned")}))
    head = mmcl.load_model(result.run_dir).towers["image"].head
    assert head.embed_dim == 10  # type: ignore[union-attr]


def test_fine_tuning_from_the_first_layer_of_the_head(run: Path) -> None:
    head = {"name": "mlp", "args": {"layers": 2, "hidden_dim": 24, "embed_dim": 10, "final": "bias"}}
    method = build_method(config(classifier(head=head, init_head_layers=1) | {"init": str(run)})).eval()
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    old: Any = mmcl.load_model(run).towers["image"].head
    new: Any = method.tower("image").head
    assert torch.equal(new.prefix(1)(features), old.prefix(1)(features))
    assert not torch.equal(new.prefix(1)[0][0].weight, old.prefix(2)[1][0].weight)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"init_head_layers": 2}, "image.init_head_layers: the heads differ in their first 2 layers"),
        ({"head": {"name": "none"}, "init_head_layers": 1}, "image.init_head_layers is for heads `mlp`"),
    ],
)
def test_heads_that_do_not_fit_are_named(run: Path, image: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(config(classifier(**image) | {"init": str(run)}))


def test_head_layers_without_a_model_to_take_them_from_are_refused() -> None:
    with pytest.raises(UserError, match=r"image\.init_head_layers is 1: set init"):
        config(classifier(encoder=SMALL, init_head_layers=1))


def test_a_student_learns_from_a_saved_classifier(tmp_path: Path) -> None:
    teacher = str(train(config(classifier(encoder=SMALL) | {"run_dir": str(tmp_path / "teacher")})).run_dir)
    tree = classifier(encoder=SMALL) | {"method": {"name": "distillation"}, "teacher": teacher}
    method = build_method(config(tree))
    saved = mmcl.load_model(teacher).towers["image"].state_dict()
    assert all(torch.equal(method.teacher.state_dict()[key], value) for key, value in saved.items())  # type: ignore[union-attr]
    train(config(tree | {"run_dir": str(tmp_path / "student")}))
    with pytest.raises(UserError, match="method supervised does not use a teacher"):
        build_method(config(classifier(encoder=SMALL) | {"teacher": teacher}))
    other = {"name": "small_cnn", "args": {"image_size": 8, "channels": 1, "feature_dim": 32}}
    with pytest.raises(UserError, match="the student of"):
        build_method(config(tree | {"image": classifier(encoder=other)["image"]}))


def test_more_classes_than_logits_are_refused_before_training(tmp_path: Path) -> None:
    head = {"name": "mlp", "args": {"layers": 1, "embed_dim": 7, "final": "bias"}}
    with pytest.raises(UserError, match=r"set image\.head\.args\.embed_dim to 10"):
        train(config(classifier(encoder=SMALL, head=head) | {"run_dir": str(tmp_path / "refused")}))


def test_lit_locks_the_image_tower_and_learns_texts_from_scratch(run: Path, tmp_path: Path, encoded: dict[str, int]) -> None:
    folder = make_folder(tmp_path / "squares")
    linear = {"name": "linear", "args": {"embed_dim": 16}}
    tree = {
        "method": {"name": "clip"},
        "init": str(run),
        "image": {"freeze": True, "head": linear},
        "text": {"encoder": TEXT, "head": linear},
        "data": {"train": {"path": str(folder)}},
        "train": TRAIN | {"steps": 4, "batch_size": 12},
        "run_dir": str(tmp_path / "lit"),
    }
    before = copy.deepcopy(mmcl.load_model(run).towers["image"].encoder.state_dict())  # type: ignore[union-attr]
    train(config(tree))
    after = mmcl.load_model(tmp_path / "lit").towers["image"].encoder.state_dict()  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "batch-norm statistics included"
    assert encoded["image"] == 25 + 3, "each image once, not in every epoch; and a blank one when a model is loaded"
    towers = build_towers(config(tree), mmcl.load_model(run))
    assert not towers.train()["image"].encoder.training  # type: ignore[union-attr]


def test_an_encoder_that_init_has_too_is_refused(run: Path) -> None:
    linear = {"name": "linear", "args": {"embed_dim": 16}}
    tree = {
        "method": {"name": "clip"},
        "init": str(run),
        "image": {"encoder": SMALL, "head": linear},
        "text": {"head": linear},
    }
    with pytest.raises(UserError, match=r"image\.encoder and init exclude each other"):
        build_method(config(tree))


def test_a_tower_shows_images_as_the_configuration_says(tmp_path: Path) -> None:
    """12 bits in files of 16, in a frame that is not square, in training and of the model that comes out."""
    generator = np.random.default_rng(0)
    for number in range(20):
        gray = generator.integers(0, 4096, (20, 30), np.uint16)
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(gray).save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png")
    small = {"name": "small_cnn", "args": {"image_size": [16, 24], "channels": 1, "feature_dim": 8}}
    image = {"encoder": small, "preprocess": {"intensity": [0, 4095]}}
    head = {"name": "mlp", "args": {"layers": 1, "embed_dim": 2, "final": "bias"}}
    tree = {"method": {"name": "supervised"}, "image": {**image, "head": head}}
    tree |= {"data": {"train": {"path": str(tmp_path / "scans")}, "augment": []}, "run_dir": str(tmp_path / "run")}
    model = mmcl.load_model(train(config(tree)).run_dir)
    assert model.preprocess.intensity == (0, 4095)
    levels = np.rint(gray / 4095 * 255).astype(np.uint8)
    np.testing.assert_allclose(model.encode_image(gray), model.encode_image(levels), atol=1e-2)


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("image", {"mean": [0.5]}, r"image\.preprocess\.mean belongs to the encoder"),
        ("image", {"intensty": [0, 1]}, "did you mean 'intensity'"),
        ("image", {"intensity": [1, 0]}, "intensity"),
        ("text", {"intensity": [0, 1]}, r"text\.preprocess is for images"),
    ],
)
def test_a_change_of_preprocessing_that_is_not_possible(tower: str, change: dict[str, Any], message: str) -> None:
    towers = {"image": {"encoder": SMALL}, "text": {"encoder": TEXT}}
    towers[tower] = {**towers[tower], "preprocess": change}
    with pytest.raises(UserError, match=message):
        build_method(config({"method": {"name": "clip"}, **towers}))
