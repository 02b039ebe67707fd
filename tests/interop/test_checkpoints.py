"""Checkpoints in common forms: in wrappers of trainers, without a temperature, of other resolutions and other code."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmcl.encoders import IMAGE_ENCODERS
from mmcl.encoders.open_clip import _preprocess
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.untrusted import read_tensors
from mmcl.interop.load import load_model
from mmcl.interop.save import save_model
from tests.arithmetic import network_tolerance
from tests.encoders import tiny
from tests.narrow import of_type

State = dict[str, Tensor]
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod."]
NESTS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 1, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}},
    "model": lambda state: {"step": 3, "model": state},
    "model_state_dict": lambda state: {"loss": 0.5, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "module": lambda state: {"module": state, "global_steps": 7},
    "model.state_dict": lambda state: {"model": {"state_dict": state}},
    "a name of their own": lambda state: {"student": state, "epoch": 4},
}


def clip_state(config: dict[str, Any], model: type[nn.Module] = open_clip.CLIP) -> State:
    torch.manual_seed(0)
    state = tiny.shaken(model(**copy.deepcopy(config))).state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if name != "attn_mask"}


def load(state: Any, path: Path) -> Any:
    torch.save(state, path)
    return load_model(f"open_clip:Tiny/{path}", device="cpu")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nest", NESTS)
def test_weights_are_found_in_every_wrapping(nest: str, prefix: str, tmp_path: Path) -> None:
    layers = nn.ModuleDict({"model": nn.Linear(2, 3), "head": nn.Linear(3, 4)})
    state = layers.state_dict()
    torch.save(NESTS[nest]({prefix + name: tensor for name, tensor in state.items()}), tmp_path / "weights.pt")
    found = read_tensors(tmp_path / "weights.pt", names=state)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"model.{name}".replace("visual.", "visual._orig_mod."),
        lambda name: f"clip.backbone.{name}",
    ],
)
def test_a_wrapped_clip_gives_the_embeddings_of_the_bare_one(rename: Any, arch: dict[str, Any], tmp_path: Path) -> None:
    state = clip_state(arch)
    wrapped = {rename(name): tensor for name, tensor in state.items()}
    lightning = {"state_dict": {**wrapped, "loss.weight": torch.ones(3)}, "epoch": 2, "global_step": 10}
    bare, found = load(state, tmp_path / "bare.pt"), load(lightning, tmp_path / "wrapped.ckpt")
    assert found.fingerprint == bare.fingerprint
    assert found.logit_scale == bare.logit_scale == pytest.approx(state["logit_scale"].exp().item())


def test_compiled_weights_load_into_timm(tmp_path: Path) -> None:
    state = tiny.shaken(timm.create_model("test_vit")).state_dict()
    for name, prefix in (("bare", ""), ("wrapped", "model._orig_mod.")):
        wrapped = {f"{prefix}{key}": tensor for key, tensor in state.items()}
        torch.save({"state_dict": {**wrapped, "criterion.weight": torch.ones(2)} if prefix else wrapped}, tmp_path / name)
    bare, wrapped_model = (load_model(f"timm:test_vit/{tmp_path / name}", device="cpu") for name in ("bare", "wrapped"))
    assert bare.fingerprint == wrapped_model.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "has no tensors where weights are expected, only epoch, optimizer"),
        (
            {"student": {"a.weight": torch.ones(1)}, "teacher": {"a.weight": torch.ones(1)}},
            r"student \(1 tensors\), teacher \(1 tensors\)",
        ),
        ({"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, r"several models \(a\., b\.\)"),
    ],
    ids=["none", "two", "two prefixes"],
)
def test_what_was_found_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message) as caught:
        read_tensors(tmp_path / "weights.pt", names=["weight"])
    assert "\n" not in str(caught.value)


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="has no tensors"):
        read_tensors(tmp_path / "weights.pt")


def test_without_a_temperature_similarities_work(
    arch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = clip_state(arch)
    whole = load(state, tmp_path / "whole.pt")
    del state["logit_scale"]
    model = load(state, tmp_path / "weights.pt")
    assert model.logit_scale is None
    assert "weights.pt: has no logit_scale" in caplog.text
    assert all(torch.equal(model.towers.state_dict()[name], value) for name, value in whole.towers.state_dict().items())
    rows, expected = model.encode_text(["a cat"]), whole.encode_text(["a cat"])
    np.testing.assert_allclose(rows, expected, atol=network_tolerance(whole.towers))
    with pytest.raises(UserError, match="temperature"):
        model.probs(model.encode_text(["a cat"]), model.encode_text(["a dog"]))


def test_without_a_temperature_a_folder_of_transformers_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.transformers_model("siglip", tmp_path)
    weights = tmp_path / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("logit_")}
    save_file(state, weights, metadata={"format": "pt"})
    model = load_model(f"hf:{tmp_path}", device="cpu")
    assert (model.logit_scale, model.logit_bias) == (None, None)
    assert "has no logit_scale" in caplog.text


@pytest.mark.parametrize("shape", [[1], [1, 1]])
def test_a_temperature_of_any_shape_is_one_number(shape: list[int], arch: dict[str, Any], tmp_path: Path) -> None:
    state = clip_state(arch)
    expected = state["logit_scale"].exp().item()
    assert load({**state, "logit_scale": state["logit_scale"].reshape(shape)}, tmp_path / "a.pt").logit_scale == pytest.approx(
        expected
    )
    with pytest.raises(UserError, match=r"logit_scale has shape \[2\]"):
        load({**state, "logit_scale": torch.ones(2)}, tmp_path / "b.pt")


@pytest.mark.parametrize("target", ["clip", "siglip"])
def test_a_clip_and_a_siglip_start_from_each_other(target: str, arch: dict[str, Any], tmp_path: Path) -> None:
    """With a bias that the weights lack, or without one that they have; what the weights have decides."""
    state = clip_state(arch)
    if target == "siglip":
        arch["init_logit_bias"] = -10
    else:
        state["logit_bias"] = torch.tensor(-3.0)
    assert load(state, tmp_path / "weights.pt").logit_bias == (None if target == "siglip" else -3.0)


def test_positions_are_resampled_as_open_clip_does(
    arch: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = clip_state(arch)
    torch.save(state, tmp_path / "small.pt")
    arch["vision_cfg"]["image_size"], arch["text_cfg"]["context_length"] = 64, 30
    theirs = open_clip.CustomTextCLIP(**copy.deepcopy(arch))
    open_clip.load_checkpoint(theirs, str(tmp_path / "small.pt"))
    model = load_model(f"open_clip:Tiny/{tmp_path / 'small.pt'}", device="cpu")
    for part, own in (("image", theirs.visual), ("text", theirs.text)):
        ours = getattr(model.towers[part].encoder, "visual" if part == "image" else "text")
        torch.testing.assert_close(ours.positional_embedding, own.positional_embedding, rtol=0, atol=0)
    said = caplog.text
    assert "visual.positional_embedding is resampled from [5, 32] to [17, 32]" in said
    assert "text.positional_embedding is resampled from [20, 16] to [30, 16]" in said


def test_positions_of_timm_are_resampled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tiny.shaken(timm.create_model("test_vit", num_classes=0)).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    args = {"name": "test_vit", "pretrained": str(tmp_path / "weights.pt"), "image_size": 96}
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(IMAGE_ENCODERS.build("timm", args).model.pos_embed, expected, rtol=0, atol=0)
    assert "pos_embed is resampled from [1, 101, 64] to [1, 37, 64]" in caplog.text


def test_positions_of_another_width_are_refused(arch: dict[str, Any], tmp_path: Path) -> None:
    state = clip_state(arch)
    for wrong in (torch.ones(5, 8), torch.ones(7, 32)):
        with pytest.raises(UserError, match="not of this architecture"):
            load({**state, "visual.positional_embedding": wrong}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not of this architecture"):
        load({**state, "positional_embedding": torch.ones(30, 8)}, tmp_path / "b.pt")


@pytest.mark.parametrize("setting", [{"resize_mode": 3}, {"interpolation": 3}])
def test_a_setting_of_open_clip_that_is_not_text_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"unknown {next(iter(setting))} 3"):
        _preprocess(setting, 64)


def _big_vision(model: Any) -> dict[str, np.ndarray]:
    """The weights of a SigLIP model of open_clip under the names and in the shapes of Google's big_vision."""

    def attention(weight: Tensor, bias: Tensor, out: Any, heads: int) -> State:
        width = weight.shape[1]
        split: State = {}
        for name, w, b in zip(("query", "key", "value"), weight.chunk(3), bias.chunk(3), strict=True):
            split |= {f"{name}/kernel": w.T.reshape(width, heads, -1), f"{name}/bias": b.reshape(heads, -1)}
        return {**split, "out/kernel": out.weight.T.reshape(heads, -1, width), "out/bias": out.bias}

    def block(norms: list[Any], attended: State, layers: list[Any]) -> State:
        named = {f"MultiHeadDotProductAttention_0/{name}": value for name, value in attended.items()}
        for number, norm in enumerate(norms):
            named |= {f"LayerNorm_{number}/scale": norm.weight, f"LayerNorm_{number}/bias": norm.bias}
        for number, layer in enumerate(layers):
            named |= {f"MlpBlock_0/Dense_{number}/kernel": layer.weight.T, f"MlpBlock_0/Dense_{number}/bias": layer.bias}
        return named

    trunk, text = model.visual.trunk, model.text
    found: State = {
        "img/embedding/kernel": trunk.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "img/embedding/bias": trunk.patch_embed.proj.bias,
        "img/cls": trunk.cls_token,
        "img/pos_embedding": trunk.pos_embed,
        "img/Transformer/encoder_norm/scale": trunk.norm.weight,
        "img/Transformer/encoder_norm/bias": trunk.norm.bias,
        "txt/Embed_0/embedding": text.token_embedding.weight,
        "txt/pos_embedding": text.positional_embedding[None],
        "txt/Encoder_0/encoder_norm/scale": text.ln_final.weight,
        "txt/Encoder_0/encoder_norm/bias": text.ln_final.bias,
        "txt/head/kernel": text.text_projection.weight.T,
        "txt/head/bias": text.text_projection.bias,
        "t": model.logit_scale[None],
        "b": model.logit_bias[None],
    }
    for number, part in enumerate(trunk.blocks):
        own = attention(part.attn.qkv.weight, part.attn.qkv.bias, part.attn.proj, part.attn.num_heads)
        values = block([part.norm1, part.norm2], own, [part.mlp.fc1, part.mlp.fc2])
        found |= {f"img/Transformer/encoderblock_{number}/{name}": value for name, value in values.items()}
    for number, part in enumerate(text.transformer.resblocks):
        own = attention(part.attn.in_proj_weight, part.attn.in_proj_bias, part.attn.out_proj, part.attn.num_heads)
        values = block([part.ln_1, part.ln_2], own, [part.mlp.c_fc, part.mlp.c_proj])
        found |= {f"txt/Encoder_0/encoderblock_{number}/{name}": value for name, value in values.items()}
    return {f"params/{name}": value.detach().numpy() for name, value in found.items()}


@torch.no_grad()
def test_siglip_weights_of_google_give_the_same_embeddings(arch: dict[str, Any], tmp_path: Path) -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none", "image_size": 160}
    arch.update(embed_dim=64, vision_cfg=vision, init_logit_bias=-10)
    arch["text_cfg"].update(no_causal_mask=True, pool_type="last", proj_bias=True)
    theirs: Any = tiny.shaken(open_clip.CustomTextCLIP(**copy.deepcopy(arch)))
    theirs.logit_bias.fill_(-7.5)
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **_big_vision(theirs))
    model = load_model(f"open_clip:Tiny/{tmp_path / 'weights.npz'}", device="cpu")
    image: Any = model.towers["image"].encoder
    pixels = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(image(pixels), theirs.encode_image(image.norm(pixels)))
    tokens = open_clip.SimpleTokenizer()(["a cat", "two dogs"], context_length=20)
    expected = theirs.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(model.encode_text(["a cat", "two dogs"]), expected, atol=1e-5)
    assert model.logit_bias == -7.5


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None], ids=["empty", "cut", "other weights"])
def test_other_arrays_are_one_clear_line(content: bytes | None, arch: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    if content is None:
        np.savez(path, a=np.ones(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not weights of Google's SigLIP for this architecture") as caught:
        load_model(f"open_clip:Tiny/{path}", device="cpu")
    assert "\n" not in str(caught.value)


def _apple(state: State) -> State:
    """The weights of an open_clip model with a FastViT in the names of Apple's MobileCLIP."""
    stages = {0: 0, 1: 2, 2: 4, 3: 7}  # in a flat list with the downsampling and the last position embeddings between them
    image = [
        (r"^stem\.", "patch_embed."),
        *((rf"stages\.{stage}\.blocks", f"network.{place}") for stage, place in stages.items()),
        *((rf"stages\.{stage}\.downsample\.proj", f"network.{2 * stage - 1}.proj") for stage in (1, 2, 3)),
        (r"stages\.3\.pos_emb\.pos_enc", "network.6.pe"),
        ("conv_kxk", "rbr_conv"),
        ("conv_scale", "rbr_scale"),
        (r"\bidentity\b", "rbr_skip"),
        ("final_conv", "conv_exp"),
        ("large_conv", "lkb_origin"),
        (r"\bmlp\b", "convffn"),
        (r"se\.fc1", "se.reduce"),
        (r"se\.fc2", "se.expand"),
        (r"(layer_scale(_\d)?)\.gamma", r"\1"),
        (r"head\.fc\.weight", "head.proj"),
    ]
    text = [
        ("text_projection", "projection_layer"),
        ("token_embedding", "embedding_layer"),
        ("positional_embedding", "positional_embedding.pos_embed.pos_embed"),
        ("ln_final", "final_layer_norm"),
        (r"resblocks\.", ""),
        ("ln_1", "pre_norm_mha.0"),
        (r"attn\.in_proj_", "pre_norm_mha.1.qkv_proj."),
        (r"\battn\b", "pre_norm_mha.1"),
        ("ln_2", "pre_norm_ffn.0"),
        (r"mlp\.c_fc", "pre_norm_ffn.1"),
        (r"mlp\.c_proj", "pre_norm_ffn.4"),
    ]
    found: State = {"logit_scale": state["logit_scale"]}
    for prefix, new, rules in (("visual.trunk.", "image_encoder.model.", image), ("text.", "text_encoder.", text)):
        for name, tensor in state.items():
            if name.startswith(prefix) and not name.endswith(("head.fc.bias", "attn_mask")):
                short = name.removeprefix(prefix)
                for pattern, replacement in rules:
                    short = re.sub(pattern, replacement, short)
                found[new + short] = tensor.T if short == "head.proj" else tensor
    found["text_encoder.positional_embedding.pos_embed.pos_embed"] = state["text.positional_embedding"][None, None]
    return found


def _tags_of(release: dict[str, Any]) -> Callable[[str, str], dict[str, Any]]:
    return lambda name, tag: release if tag in ("released", "longer") else {}


@torch.no_grad()
@pytest.mark.parametrize("fields", [None, {"interpolation": "nearest"}], ids=["released", "changed"])
def test_weights_of_apple_give_the_same_embeddings(
    fields: dict[str, Any] | None, arch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {"timm_model_name": "fastvit_mci0", "timm_pool": "avg", "timm_proj": None, "image_size": 64}
    arch.update(embed_dim=512, vision_cfg=vision)
    arch["text_cfg"].update(no_causal_mask=True)
    torch.manual_seed(0)
    theirs: Any = open_clip.CustomTextCLIP(**copy.deepcopy(arch)).eval()
    theirs.visual.trunk.head.fc.bias.zero_()  # Apple's projection has none
    theirs.text.text_projection.normal_()
    torch.save(_apple(theirs.state_dict()), tmp_path / "weights.pt")
    release = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["released", "longer"])
    monkeypatch.setattr("mmcl.encoders.open_clip.get_pretrained_cfg", _tags_of(release))
    model = load_model(f"open_clip:Tiny/{tmp_path / 'weights.pt'}", device="cpu", preprocess=fields)
    image: Any = model.towers["image"].encoder
    expected = _preprocess(release, 64)
    assert model.preprocess == (replace(expected, interpolation="nearest") if fields else expected)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(image(pixels), theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)
    tokens = open_clip.SimpleTokenizer()(["a cat", "two dogs"], context_length=20)
    np.testing.assert_allclose(model.encode_text(["a cat", "two dogs"]), theirs.encode_text(tokens, normalize=True), atol=1e-5)
    save_model(tmp_path / "ours", model.towers)
    again = load_model(tmp_path / "ours", device="cpu")
    assert again.preprocess == model.preprocess
    torch.testing.assert_close(of_type(Tower, again.towers["image"]).encoder(pixels), image(pixels))
