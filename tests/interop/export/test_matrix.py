"""Every kind of towers in every format: exported and used by the library where mmcl is not installed, or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from mmcl.data.images.decode import decode
from mmcl.data.open import open_source
from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.errors import UserError
from mmcl.interop.export import EXPORTS
from mmcl.interop.export.exporting import export
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from tests.interop.export import models
from tests.interop.export.elsewhere import run_elsewhere
from tests.interop.export.test_transformers import same
from tests.narrow import of_type

TEXTS = ["red apple", "the red dog on a hill", "two birds with one cat and a red dog in a photo on the blue hill"]
TOLERANCE = 1e-5
EMOJI = 40

REFUSED: Mapping[tuple[str, str], str] = {
    ("open_clip ResNet", "transformers"): "CLIPModel of transformers has no ResNet",
    ("open_clip SigLIP", "transformers"): "transformers has no model of the image tower 'open_clip'",
    **{
        (name, target): f"{target} has no model of the image tower '{tower}'"
        for target in ("transformers", "open_clip")
        for name, tower in {
            "timm + BERT": "timm",
            "timm + BERT, MLP heads": "timm",
            "torchvision + own": "torchvision",
            "own + own": "strided_cnn",
            "own + own, MLP heads": "strided_cnn",
        }.items()
    },
    ("hf SigLIP", "open_clip"): "open_clip has no model of type 'siglip'",
    ("hf SigLIP 2", "open_clip"): "open_clip has no model of type 'siglip2'",
}
"""What does not fit, with the start of what is said; it ends with a format that fits."""

NEEDS_MMCL = {(name, "own") for name in models.MODELS} | {
    (name, "sentence_transformers")
    for name in ("open_clip ResNet", "open_clip SigLIP", "torchvision + own", "own + own", "own + own, MLP heads")
}
"""Exports that mmcl itself runs; all others run without it."""

QUICK = [
    ("hf CLIP, LoRA merged", "transformers"),
    ("open_clip ResNet", "open_clip"),
    ("own + own", "pt2"),
    ("own + own", "open_clip"),
]
CELLS = [(name, target) for target in EXPORTS for name in models.MODELS]


def write_inputs(model: Model, folder: Path) -> list[Image.Image]:
    """Bundled emoji in the size to which the model resizes, in which every library shows them alike, and the texts."""
    folder.mkdir()
    side = model.preprocess.resize_size or model.preprocess.size
    assert isinstance(side, int)
    source = open_source("emoji", args={"split": "unseen_style", "fold": "test"})
    images = [decode(source[index].required_image()).convert("RGB").resize((side, side)) for index in range(0, EMOJI * 20, 20)]
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}.png")
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return images


class Cells:
    """Exports of models, each made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.models: dict[str, Model] = {}
        self.images: dict[str, list[Image.Image]] = {}
        self.refusals: dict[tuple[str, str], str] = {}

    def place(self, *words: str) -> Path:
        return self.folder / re.sub(r"[^\w.]+", "_", " ".join(words))

    def model(self, name: str) -> Model:
        if name not in self.models:
            self.models[name] = models.MODELS[name](self.place(name))
            self.images[name] = write_inputs(self.models[name], self.place(name, "inputs"))
        return self.models[name]

    def export(self, cells: Sequence[tuple[str, str]]) -> None:
        """Exports them, and embeds by those that need no mmcl elsewhere, in one process."""
        jobs = []
        for name, target in cells:
            out = self.place(name, target)
            try:
                export(self.model(name), to=target, out=out)
            except UserError as error:
                self.refusals[name, target] = str(error)
                assert not out.exists()
                continue
            if (name, target) not in NEEDS_MMCL:
                files = {"folder": out, "inputs": self.place(name, "inputs"), "out": self.place(name, target, "rows.npz")}
                jobs.append({"target": target, **{key: str(path) for key, path in files.items()}})
        run_elsewhere(jobs)

    def rows(self, name: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self.place(name, target, "rows.npz")) as rows:
            return rows["image"], rows["text"]


def check(cells: Cells, name: str, target: str) -> None:
    """A cell is refused as it should be, or gives elsewhere what the model gives."""
    if (name, target) in REFUSED:
        said = cells.refusals[name, target]
        assert said.startswith(REFUSED[name, target])
        fits = re.search(r"try --to (\w+)$", said)
        assert fits is not None
        assert (name, fits[1]) not in cells.refusals
        return
    assert (name, target) not in cells.refusals, cells.refusals[name, target]
    if (name, target) in NEEDS_MMCL:
        return  # by what `export` compares
    model = cells.models[name]
    image, text = cells.rows(name, target)
    np.testing.assert_allclose(image, model.encode_image(cells.images[name]), atol=TOLERANCE)
    np.testing.assert_allclose(text, model.encode_text(TEXTS), atol=TOLERANCE)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    cells = Cells(tmp_path_factory.mktemp("few"))
    cells.export(QUICK)
    return cells


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    cells = Cells(tmp_path_factory.mktemp("every"))
    cells.export(CELLS)
    return cells


@pytest.mark.long
@pytest.mark.parametrize(("name", "target"), QUICK)
def test_a_cell(name: str, target: str, few: Cells) -> None:
    check(few, name, target)


@pytest.mark.long
@pytest.mark.parametrize(("name", "target"), [cell for cell in QUICK if cell not in REFUSED])
def test_the_hits_for_a_text_are_those_of_mmcl(name: str, target: str, few: Cells) -> None:
    """TEXTS[0] among the emoji, where mmcl is not installed."""
    image, text = few.rows(name, target)
    found = np.argsort(-image @ text[0], kind="stable")
    model, images = few.models[name], few.images[name]
    expected = np.argsort(-model.encode_image(images) @ model.encode_text(TEXTS[0])[0], kind="stable")
    assert found[:5].tolist() == expected[:5].tolist()


@pytest.mark.long
@pytest.mark.parametrize(("name", "target"), CELLS)
def test_every_cell(name: str, target: str, every: Cells) -> None:
    check(every, name, target)


def test_from_transformers_to_open_clip_and_back(tmp_path: Path) -> None:
    """And from one library to the other, loaded from there again, and back: the same numbers under the same names."""
    model = models.of_transformers("clip", tmp_path / "theirs")
    export(model, to="open_clip", out=tmp_path / "open_clip")
    there = load_model(f"open_clip:local-dir:{tmp_path / 'open_clip'}", device="cpu")
    export(there, to="transformers", out=tmp_path / "back")
    theirs, back = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert same(back, theirs)
    again = load_model(f"hf:{tmp_path / 'back'}", device="cpu")
    encoder = of_type(TextEncoder, of_type(Tower, again.towers["text"]).encoder)
    assert encoder.tokenizer(TEXTS).ids.tolist() == model.tokenizer(TEXTS).ids.tolist()
    np.testing.assert_allclose(again.encode_text(TEXTS), model.encode_text(TEXTS), atol=TOLERANCE)
