"""Folders of transformers: the library's own models give what the exported model gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.encoders.heads import LinearHead, MLPHead
from mmcl.encoders.open_clip import OpenClipImage, OpenClipText
from mmcl.encoders.tokenizers import Clean, clip_bpe
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.evaluate.classifier import ZeroShotClassifier
from mmcl.interop.export import clip_names
from mmcl.interop.export.dual import open_clip_weights
from mmcl.interop.export.exporting import export
from mmcl.interop.export.hf_files import image_processor, write_tokenizer
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.encoders.hard_texts import TEXTS as HARD_TEXTS
from tests.interop.export import models
from tests.narrow import of_type

TEXTS = ["a cat", "the red dog on a hill", "one!", "two, three"]


def images(side: int = 32) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def with_heads(model: Model, **heads: nn.Module) -> Model:
    """The same encoders under other heads."""
    names = {LinearHead: "linear", MLPHead: "mlp"}
    towers = nn.ModuleDict()
    for name, tower in model.towers.items():
        head, spec = heads.get(name), tower.spec
        if head is not None:
            spec = replace(spec, head=names[type(head)], head_args={"embed_dim": head.embed_dim})  # type: ignore[type-var]
        towers[name] = Tower(tower.encoder, tower.head if head is None else head, spec=spec)  # type: ignore[arg-type]
    return Model(towers, logit_scale=model.logit_scale, logit_bias=model.logit_bias, device="cpu")


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_a_model_of_the_library_comes_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    model = models.of_transformers(kind, tmp_path / "theirs")
    report = export(model, to="transformers", out=tmp_path / "ours")
    assert same(weights_of(tmp_path / "ours"), weights_of(tmp_path / "theirs"))
    assert max(report.parity.tensor.values()) < 1e-5
    again = load_model(f"hf:{tmp_path / 'ours'}", device="cpu", preprocess=model.preprocess if kind == "siglip2" else None)
    assert same(again.towers.state_dict(), model.towers.state_dict())
    tolerance = network_tolerance(model.towers)
    np.testing.assert_allclose(again.encode_text(TEXTS), model.encode_text(TEXTS), atol=tolerance)
    np.testing.assert_allclose(again.encode_image(images()), model.encode_image(images()), atol=tolerance)
    assert again.logit_scale == pytest.approx(model.logit_scale)
    assert again.logit_bias == (None if model.logit_bias is None else pytest.approx(model.logit_bias))


@pytest.mark.parametrize("to", ["pt2", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_siglip_2_becomes_a_graph_for_batches_of_any_size(to: str, tmp_path: Path) -> None:
    model = models.of_transformers("siglip2", tmp_path / "theirs")
    assert max(export(model, to=to, out=tmp_path / "ours").parity.tensor.values()) < 1e-5


@pytest.mark.parametrize("pooling", ["last", "eot"])
def test_every_pooling_becomes_a_graph_for_batches_of_any_size(pooling: str, tmp_path: Path) -> None:
    text = {"encoder": "transformers", "encoder_args": {"config": tiny.config("bert"), "pooling": pooling}}
    model = models.shaken_model({"text": text})
    assert max(export(model, to="pt2", out=tmp_path / "ours").parity.tensor.values()) < 1e-5


@pytest.mark.parametrize("kind", ["clip", "eos"])
def test_open_clips_clip_becomes_one_of_transformers(kind: str, tmp_path: Path) -> None:
    """With GELU and with QuickGELU, pooled at the largest token and at the end token."""
    config = tiny.open_clip_config(kind, tmp_path)
    config["text_cfg"]["proj_bias"] = False
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs = tiny.open_clip_model(config, kind, folder / "open_clip_model.safetensors").eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    model = load_model(f"open_clip:local-dir:{folder}", device="cpu")
    report = export(model, to="transformers", out=tmp_path / "ours")
    assert max(report.parity.tensor.values()) < 1e-5
    assert report.parity.end_to_end["texts"] < 1e-5

    ours: Any = transformers.CLIPModel.from_pretrained(tmp_path / "ours")
    assert (
        ours.config.text_config.hidden_act
        == ours.config.vision_config.hidden_act
        == ("quick_gelu" if kind == "eos" else "gelu")
    )
    tokens = model.tokenizer(TEXTS)
    with torch.no_grad():
        expected = theirs.encode_text(torch.nn.functional.pad(tokens.ids, (0, 20 - tokens.ids.shape[1])), normalize=True)  # type: ignore[operator]
        found = ours.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask.long())
    found = found if isinstance(found, Tensor) else found.pooler_output
    torch.testing.assert_close(nn.functional.normalize(found), expected, atol=network_tolerance(theirs), rtol=0)

    image, text = (model.towers[name].encoder for name in ("image", "text"))
    own = open_clip_weights(of_type(OpenClipImage, image), of_type(OpenClipText, text))
    back = clip_names.to_open_clip(clip_names.to_transformers(own))
    assert same(back, own)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_linear_heads_become_part_of_the_projection(kind: str, tmp_path: Path) -> None:
    model = models.of_transformers(kind, tmp_path / "theirs")
    torch.manual_seed(1)
    heads = {"text": LinearHead(model.embed_dim, embed_dim=6 if kind == "clip" else model.embed_dim)}
    if kind == "clip":
        heads["image"] = LinearHead(model.embed_dim, embed_dim=6)
    headed = with_heads(model, **heads)
    report = export(headed, to="transformers", out=tmp_path / "ours")
    assert max(report.parity.tensor.values()) < 1e-5
    again = load_model(f"hf:{tmp_path / 'ours'}", device="cpu")
    assert again.embed_dim == headed.embed_dim
    np.testing.assert_allclose(again.encode_text(TEXTS), headed.encode_text(TEXTS), atol=network_tolerance(headed.towers))


def test_linear_heads_of_open_clip_too(tmp_path: Path) -> None:
    model = models.of_open_clip("clip", tmp_path / "theirs")
    heads = {name: LinearHead(model.embed_dim, embed_dim=5) for name in ("image", "text")}
    report = export(with_heads(model, **heads), to="transformers", out=tmp_path / "ours")
    assert max(report.parity.tensor.values()) < 1e-5
    assert json.loads((tmp_path / "ours/config.json").read_text())["projection_dim"] == 5


def test_a_head_that_is_no_part_of_the_embedding_is_no_hindrance(tmp_path: Path) -> None:
    model = with_heads(models.of_transformers("clip", tmp_path / "theirs"), image=MLPHead(8), text=MLPHead(8))
    model.embedding = "features"
    assert max(export(model, to="transformers", out=tmp_path / "ours").parity.tensor.values()) < 1e-5


def test_half_precision(tmp_path: Path) -> None:
    model = models.of_transformers("clip", tmp_path / "theirs")
    report = export(model, to="transformers", out=tmp_path / "ours", precision="fp16")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "ours").values()} == {torch.float16}
    assert 0 < max(report.parity.tensor.values()) < report.bound == 5e-3


def refused(model: Model, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        export(model, to="transformers", out=folder / "out")
    assert not (folder / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


REFUSED = {
    "open_clip ResNet": "no ResNet as its image tower; try --to",
    "open_clip SigLIP": "transformers has no model of the image tower 'open_clip' and text tower 'open_clip'; try --to",
    "timm + BERT": "transformers has no model of the image tower 'timm' and text tower 'transformers'; try --to",
    "own + own": "transformers has no model of the image tower 'strided_cnn' and text tower 'small_text'; try --to",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_towers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    assert REFUSED[name] in refused(models.MODELS[name](tmp_path / "model"), tmp_path)


def test_one_tower_alone_and_towers_of_two_models_are_refused(tmp_path: Path) -> None:
    one, other = (models.of_transformers(kind, tmp_path / kind) for kind in ("clip", "siglip"))
    assert "no model of the image tower 'transformers'; try" in refused(
        Model(nn.ModuleDict({"image": one.towers["image"]})), tmp_path
    )
    mixed = Model(nn.ModuleDict({"image": one.towers["image"], "text": other.towers["text"]}))
    assert "image tower 'transformers' and text tower 'transformers'" in refused(mixed, tmp_path)


@pytest.mark.parametrize(
    ("kind", "heads", "message"),
    [
        ("clip", {"image": MLPHead(8)}, "the image head MLPHead has no place in a model of type 'clip'; try --to"),
        (
            "siglip",
            {"image": LinearHead(16, embed_dim=16)},
            "head LinearHead has no place in a model of type 'siglip'",
        ),
    ],
)
def test_no_head_is_dropped(kind: str, heads: dict[str, nn.Module], message: str, tmp_path: Path) -> None:
    assert message in refused(with_heads(models.of_transformers(kind, tmp_path / "theirs"), **heads), tmp_path)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_heads": 4}, "no vision_cfg.attentional_pool True"),
        ("vision_cfg", {"no_ln_pre": True}, "no vision_cfg.no_ln_pre True"),
        ("text_cfg", {"no_causal_mask": True}, "no text_cfg.no_causal_mask True"),
        ("text_cfg", {"proj_bias": True}, "no text_cfg.proj_bias True"),
        ("text_cfg", {"pool_type": "last"}, "pools at the end token, not as text_cfg.pool_type 'last' does"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 5}, "pools at the end token, not as text_cfg.pool_type 'eos' does"),
    ],
)
def test_what_clip_of_transformers_lacks_is_named(part: str, values: dict[str, Any], message: str) -> None:
    config = tiny.open_clip_config("clip", Path())
    config[part].update(values)
    with pytest.raises(UserError, match=message):
        clip_names.config_for_transformers(config, end_id=49407)


def test_the_wrong_activation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights load without complaint."""
    right = clip_names.config_for_transformers

    def wrong(config: Mapping[str, Any], *, end_id: int | None) -> dict[str, Any]:
        return right({**config, "quick_gelu": not config.get("quick_gelu")}, end_id=end_id)

    monkeypatch.setattr("mmcl.interop.export.dual.config_for_transformers", wrong)
    assert "pixels differ by" in refused(models.of_open_clip("clip", tmp_path / "theirs"), tmp_path)


def test_the_librarys_pipeline_gives_the_same_probabilities(tmp_path: Path) -> None:
    model = models.of_open_clip("clip", tmp_path / "theirs")
    export(model, to="transformers", out=tmp_path / "ours")
    classify: Any = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path / "ours"), device="cpu")
    labels = ["cat", "red dog", "hill"]
    [image, *_] = images()
    theirs = {one["label"]: one["score"] for one in classify(image, candidate_labels=labels, hypothesis_template="a {}")}
    ours = {one["label"]: one["score"] for one in ZeroShotClassifier(model, labels, "a {}")(image)}
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_a_bias_that_clip_lacks_is_told(tmp_path: Path) -> None:
    model = models.of_transformers("clip", tmp_path / "theirs")
    model.logit_bias = -3.0
    lost = export(model, to="transformers", out=tmp_path / "ours").lost
    assert "logit_bias -3 has no place in CLIPModel: its probabilities are others" in lost
    model.logit_bias, model.logit_scale = None, None
    lost = export(model, to="transformers", out=tmp_path / "again").lost
    assert "CLIPModel has logit_scale, and the model has none: its probabilities mean nothing" in lost


@pytest.mark.parametrize("clean", ["none", "whitespace", "lower", "canonicalize"])
def test_a_tokenizer_is_the_same_there(clean: Clean, tmp_path: Path) -> None:
    """Of texts without mojibake and HTML; "!" is the token 0, with which mmcl pads."""
    ours = clip_bpe(20, clean=clean)
    lost = write_tokenizer(ours, tmp_path, reads_padding=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ("not repaired" in "".join(lost)) == (clean != "none")
    assert theirs.model_max_length == 20
    texts = [*TEXTS, "!", "  Two\t spaces\n", "it's 1,234 €", "A_b-c", "日本語", " ".join(["word"] * 40)]
    expected = ours(texts)
    found = theirs(texts, padding=True, truncation=True, return_tensors="pt")
    for text, ids, mask, theirs_ids, theirs_mask in zip(
        texts, expected.ids, expected.mask, found["input_ids"], found["attention_mask"].bool(), strict=True
    ):
        assert ids[mask].tolist() == theirs_ids[theirs_mask].tolist(), text


def test_a_tokenizer_that_blanks_its_end_is_refused(tmp_path: Path) -> None:
    tokenizer = clip_bpe(20)
    tokenizer.blank_id = 49407
    with pytest.raises(UserError, match="replaces its end token by 0; try --to onnx"):
        write_tokenizer(tokenizer, tmp_path, reads_padding=False)


SQUARE = Preprocess(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), fill=0, backend="torchvision", crop_rounding="truncate")


@pytest.mark.parametrize(
    "preprocess",
    [
        SQUARE,
        replace(SQUARE, resize_size=37),
        replace(SQUARE, resize="squash", interpolation="bilinear"),
        replace(SQUARE, resize="squash", resize_size=40),
        replace(SQUARE, size=(24, 32), resize="squash"),
    ],
)
def test_images_are_shown_as_in_training(preprocess: Preprocess) -> None:
    from mmcl.data.images.tensors import to_tensor

    processor, lost = image_processor(preprocess)
    assert lost == []
    for width, height in ((50, 70), (70, 50), (32, 35), (33, 32)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        expected = (to_tensor(image, preprocess) / 255 - mean) / std
        torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"][0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "pad"}, "no image processor for resize 'pad'; try --to onnx"),
        ({"resize": "none"}, "no image processor for resize 'none'"),
        ({"resize_size": (30, 40)}, r"no image processor for resize 'shortest' to \(30, 40\)"),
        ({"channel_order": "bgr"}, "images other than RGB"),
        ({"channels": 1, "mean": 0, "std": 1}, "images other than RGB"),
    ],
)
def test_other_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    changes = {name: (float(value),) if name in ("mean", "std") else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        image_processor(replace(SQUARE, **changes))


def test_differences_in_preprocessing_are_told() -> None:
    _, lost = image_processor(Preprocess(size=32, shrink_on_load=True, intensity=(0, 9)))
    assert len(lost) == 5
    _, lost = image_processor(replace(SQUARE, crop_rounding="floor"))
    assert lost == []


def test_hard_texts_that_need_no_repair_are_split_alike(tmp_path: Path) -> None:
    model = models.of_transformers("siglip", tmp_path / "theirs")
    export(model, to="transformers", out=tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    found = theirs(HARD_TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert list(found) == ["input_ids"]
    tokens = model.tokenizer(HARD_TEXTS)
    ids = tokens.ids.masked_fill(~tokens.mask, model.tokenizer.pad_id)
    assert torch.equal(found["input_ids"], nn.functional.pad(ids, (0, 12 - ids.shape[1]), value=model.tokenizer.pad_id))
