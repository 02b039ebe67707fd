"""Folders and repositories written by other libraries: the embeddings equal those of the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import peft
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.errors import UserError
from mmcl.interop.load import load_model
from mmcl.interop.save import save_model
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.narrow import of_type, present

TEXTS = ["a cat", "the red dog on a hill", ""]
SHOWN = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


def _open_clip_folder(kind: str, folder: Path, weights: str = "open_clip_model.safetensors") -> Path:
    """Written as open_clip's own export to the hub does, with the parts of a Hugging Face text tower beside it."""
    folder.mkdir(exist_ok=True)
    config = tiny.open_clip_config(kind, folder)
    tiny.open_clip_model(config, kind, folder / weights)
    if kind in ("siglip", "bert"):
        config["custom_text"] = True
    if kind == "bert":
        (folder / "model.safetensors").unlink()  # of the text model alone
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": SHOWN}))
    return folder


def _image(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("clip", "open_clip_pytorch_model.bin"),
        ("eos", "open_clip_model.safetensors"),
        ("siglip", "model.safetensors"),
        ("bert", "weights_of_mine.pth"),
    ],
)
@torch.no_grad()
def test_an_open_clip_folder_gives_open_clips_embeddings(kind: str, weights: str, tmp_path: Path) -> None:
    folder = _open_clip_folder(kind, tmp_path / "theirs", weights)
    theirs, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model = load_model(f"open_clip:local-dir:{folder}", device="cpu")
    preprocess = present(model.preprocess)
    assert [preprocess.mean, preprocess.std] == [tuple(SHOWN["mean"]), tuple(SHOWN["std"])]
    assert (preprocess.resize, preprocess.interpolation) == ("squash", "bilinear")
    image = _image(preprocess.height)
    pixels: Any = show(image)
    expected = theirs.eval().encode_image(pixels[None], normalize=True)
    np.testing.assert_allclose(model.encode_image(image), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_text(TEXTS), theirs.encode_text(tokenize(TEXTS), normalize=True), atol=1e-5)
    assert model.logit_scale == pytest.approx(theirs.logit_scale.exp().item())

    save_model(tmp_path / "ours", model.towers)
    shutil.rmtree(folder)
    np.testing.assert_allclose(load_model(tmp_path / "ours", device="cpu").encode_text(TEXTS), model.encode_text(TEXTS))


def test_an_open_clip_repository_is_read_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _open_clip_folder("clip", tmp_path)

    def download(name: str, filename: str = "open_clip_model.safetensors") -> str:
        assert name == "someone/model"
        return str(folder / filename)

    monkeypatch.setattr("mmcl.encoders.open_clip.download_pretrained_from_hf", download)
    monkeypatch.setattr("mmcl.interop.available.is_cached", lambda repository: repository == "someone/model")
    here = load_model(f"open_clip:local-dir:{folder}", device="cpu")
    assert load_model("open_clip:hf-hub:someone/model", device="cpu").fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), r"open_clip_config\.json: no such file"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "has no model_cfg"),
        (lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": 3}}'), "has no model_cfg"),
    ],
)
def test_an_incomplete_open_clip_folder_is_one_clear_line(change: Any, message: str, tmp_path: Path) -> None:
    folder = _open_clip_folder("clip", tmp_path)
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"open_clip:local-dir:{folder}", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_text_tower_that_is_not_in_the_folder_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _open_clip_folder("bert", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"whose config\.json is not there; copy it in"):
        load_model(f"open_clip:local-dir:{folder}", device="cpu")


def test_a_folder_with_its_own_weights_refuses_others(tmp_path: Path) -> None:
    args = {"arch": f"local-dir:{_open_clip_folder('clip', tmp_path)}", "pretrained": "openai"}
    with pytest.raises(UserError, match="brings its own weights"):
        IMAGE_ENCODERS.build("open_clip", args)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_a_timm_folder_gives_timms_features(weights: str, tmp_path: Path) -> None:
    theirs = tiny.shaken(timm.create_model("test_vit", num_classes=7, img_size=96))
    shown = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.3, 0.3], "crop_pct": 0.9, "crop_mode": "center"}
    config = {"architecture": "test_vit", "num_classes": 7, "pretrained_cfg": shown, "model_args": {"img_size": 96}}
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights.endswith(".bin"):
        torch.save(theirs.state_dict(), folder / weights)
    else:
        save_file(theirs.state_dict(), folder / weights)
    model = load_model(f"timm:local-dir:{folder}", device="cpu")
    encoder: Any = model.towers["image"].encoder
    assert (encoder.preprocess.size, encoder.preprocess.mean) == (96, (0.1, 0.2, 0.3))
    assert encoder.preprocess.resize_size == 106
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    theirs.reset_classifier(0)  # type: ignore[operator]
    torch.testing.assert_close(encoder(pixels), theirs(encoder.norm(pixels)))

    save_model(tmp_path / "ours", model.towers)
    shutil.rmtree(folder)
    again: Any = load_model(tmp_path / "ours", device="cpu").towers["image"].encoder
    torch.testing.assert_close(again(pixels), encoder(pixels))
    assert again.preprocess == encoder.preprocess


def test_a_timm_folder_without_weights_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": {}}))
    with pytest.raises(UserError, match="has no weights"):
        load_model(f"timm:local-dir:{tmp_path}", device="cpu")
    with pytest.raises(UserError, match=rf"try timm:local-dir:{tmp_path}"):
        load_model(tmp_path, device="cpu")


def test_the_root_of_an_old_sentence_transformers_clip_is_its_model(tmp_path: Path) -> None:
    tiny.transformers_model("clip", tmp_path / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    root, inner = (load_model(f"hf:{folder}", device="cpu") for folder in (tmp_path, tmp_path / "0_CLIPModel"))
    assert root.fingerprint == inner.fingerprint


def test_a_folder_of_sentence_transformers_gives_its_embeddings(tmp_path: Path) -> None:
    """As the library writes a CLIP today: the model at the root, and a module that normalizes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Transformer

    tiny.transformers_model("clip", tmp_path / "clip")
    modality = {one: {"method": f"get_{one}_features", "method_output_name": "pooler_output"} for one in ("text", "image")}
    module = Transformer(str(tmp_path / "clip"), modality_config=modality, module_output_name="sentence_embedding")
    theirs = SentenceTransformer(modules=[module, Normalize()], device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    ours = load_model(f"hf:{tmp_path / 'theirs'}", device="cpu")
    tolerance = network_tolerance(ours.towers)
    np.testing.assert_allclose(ours.encode_text(TEXTS[:2]), theirs.encode(TEXTS[:2]), atol=tolerance)
    np.testing.assert_allclose(ours.encode_image(_image(32)), theirs.encode([_image(32)]), atol=tolerance)


def _adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "nowhere"}))
    return folder


def test_an_adapter_names_the_extra_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"holds an adapter.*pip install 'mmcl\[peft\]'"):
        load_model(f"hf:{_adapter(tmp_path)}", device="cpu")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@torch.no_grad()
def test_an_adapter_is_merged_into_its_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny.transformers_model("clip", base)
    model = transformers.AutoModel.from_pretrained(base)  # which remembers its folder, for the adapter to name
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ours = load_model(f"hf:{tmp_path / 'adapter'}", device="cpu")
    tokens = of_type(TextEncoder, of_type(Tower, ours.towers["text"]).encoder).tokenizer(TEXTS[:2])
    theirs = adapted.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask.long())
    theirs = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    tolerance = network_tolerance(ours.towers["text"])
    torch.testing.assert_close(torch.from_numpy(ours.encode_text(TEXTS[:2])), theirs, rtol=0, atol=tolerance)
    assert np.abs(ours.encode_text(TEXTS[:2]) - load_model(f"hf:{base}", device="cpu").encode_text(TEXTS[:2])).max() > 0.01
    save_model(tmp_path / "saved", ours.towers)
    again = load_model(tmp_path / "saved", device="cpu")
    assert again.fingerprint == ours.fingerprint
    np.testing.assert_allclose(again.encode_text(TEXTS), ours.encode_text(TEXTS), atol=network_tolerance(ours.towers))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 24}, r"not an adapter of \S+base \(their shapes differ\); set base_model_name_or_path"),
        ({"num_hidden_layers": 1}, r"not an adapter of \S+base \(one of them alone has base_model.*layers\.1\.self_attn"),
        ({"num_hidden_layers": 3}, r"not an adapter of \S+base \(one of them alone has base_model.*layers\.2\.self_attn"),
        ({"other": True}, r"not an adapter of \S+base \((one of them alone has base_model.*layers|Target modules)"),
    ],
    ids=["wider", "fewer layers", "more layers", "another kind"],
)
def test_an_adapter_of_another_model_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.transformers_model("clip", tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    if "other" in change:
        tiny.transformers_model("vit", tmp_path / "base")
        with pytest.raises(UserError, match=message):
            IMAGE_ENCODERS.build("transformers", {"name": str(tmp_path / "adapter")})
        return
    for part in (tiny._TEXT, tiny._VISION):
        for name, value in change.items():
            monkeypatch.setitem(part, name, value)
    tiny.transformers_model("clip", tmp_path / "base")
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"hf:{tmp_path / 'adapter'}", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("open_clip_config.json", "give open_clip:local-dir:"),
        ("adapter_config.json", "give hf:"),
        ("modules.json", "give hf:"),
    ],
)
def test_a_folder_of_another_library_says_how_it_is_loaded(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"{message}{tmp_path}"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["/gone", "./gone", "../gone/", "~/gone", "a/b/c", "a/"])
@pytest.mark.parametrize("scheme", ["hf:", "timm:hf-hub:"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(scheme: str, name: str) -> None:
    with pytest.raises(UserError, match="no such folder; check the path"):
        load_model(scheme + name)


@pytest.mark.parametrize("name", ["a", "a/b", "a_1.0/b-2", "a/b@main"])
def test_what_may_be_on_the_hub_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        load_model(f"hf:{name}")
