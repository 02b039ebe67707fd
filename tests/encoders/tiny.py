"""Tiny models of the libraries, with random weights, saved as the libraries save them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors
from torch import nn

from tests.narrow import of_type

WORDS = ["a", "the", "cat", "dog", "bird", "red", "blue", "on", "hill", "with", "photo", "and", "in", "one", "two", "three"]
CONTEXT = 12


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per word: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then `WORDS`."""
    vocab = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=CONTEXT,
    )


def shaken(model: nn.Module) -> nn.Module:
    """Weights far from their initial values, so that every token and every pixel shows in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 0:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


_OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
_TIMM_TOWER = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}


def open_clip_config(kind: str, folder: Path) -> dict[str, Any]:
    """clip | eos | resnet | siglip | coca | bert; `folder` is where Hugging Face parts are written."""
    config = copy.deepcopy(_OPEN_CLIP)
    if kind == "eos":
        config["text_cfg"].update(pool_type="eos", eos_id=49407, proj_bias=True)
        config["quick_gelu"] = True
    if kind == "resnet":
        config["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
    if kind == "siglip":
        config["text_cfg"].update(no_causal_mask=True, pool_type="last", proj_bias=True)
        config.update(vision_cfg=_TIMM_TOWER, init_logit_bias=-10)
    if kind == "coca":
        config["text_cfg"].update(embed_cls=True, output_tokens=True)
        config["vision_cfg"].update(attentional_pool=True, attn_pooler_heads=4, output_tokens=True)
        config["multimodal_cfg"] = {**config["text_cfg"], "attn_pooler_heads": 2}
        del config["multimodal_cfg"]["embed_cls"], config["multimodal_cfg"]["output_tokens"]
    if kind == "bert":
        transformers_model("bert", folder)
        hf_text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
        config["text_cfg"] = {**hf_text, "context_length": CONTEXT, "hf_pooler_type": "mean_pooler"}
    return config


def open_clip_model(config: dict[str, Any], kind: str, checkpoint: Path) -> nn.Module:
    """The library's own model, written to `checkpoint` in the format of its suffix."""
    torch.manual_seed(0)
    classes = {"clip": open_clip.CLIP, "eos": open_clip.CLIP, "resnet": open_clip.CLIP, "coca": open_clip.CoCa}
    model = shaken(classes.get(kind, open_clip.CustomTextCLIP)(**copy.deepcopy(config)))
    if checkpoint.suffix == ".safetensors":
        save_file(model.state_dict(), checkpoint)
    else:
        torch.save(
            {"epoch": 1, "name": kind, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, checkpoint
        )
    return model


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_IDS = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_TEXT = {**_SMALL, **_IDS, "max_position_embeddings": CONTEXT}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 16}
_GPT2 = {**_IDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
_DUAL = {"text_config": _TEXT, "vision_config": _VISION}
_CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {**_DUAL, "projection_dim": 8},
    "siglip": _DUAL,
    "siglip2": {"text_config": _TEXT, "vision_config": {**_VISION, "num_patches": 16, "patch_size": 8}},
    "bert": _TEXT,
    "roberta": {**_TEXT, "max_position_embeddings": CONTEXT + 1},
    "distilbert": {**_IDS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": CONTEXT},
    "modernbert": {**_TEXT, "cls_token_id": 2, "sep_token_id": 3},
    "gpt2": _GPT2,
    "t5": {**_IDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "vit": _VISION,
    "dinov2": _VISION,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}


def config(kind: str) -> dict[str, Any]:
    """The configuration of `transformers_model`, from which a model with random weights is built."""
    return {"model_type": kind, **copy.deepcopy(_CONFIGS[kind])}


_PROCESSORS = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": 32,
        "do_center_crop": True,
    },
    "resnet": {"size": {"shortest_edge": 32}, "resample": 2},
    "siglip2": {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16},
}


def transformers_model(kind: str, folder: Path) -> nn.Module:
    """The library's own model, written to `folder` by `save_pretrained` with a tokenizer and an image processor."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **copy.deepcopy(_CONFIGS[kind]))
    model = of_type(transformers.PreTrainedModel, shaken(transformers.AutoModel.from_config(config)))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    processor = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **_PROCESSORS.get(kind, {})}))
    return model
