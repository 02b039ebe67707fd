"""An encoder of every library from files in the library's own format, with what the library itself makes of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torchvision
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer

from mmcl.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.encoders.tower import Encoder, ImageEncoder, TextEncoder
from tests.encoders import tiny
from tests.narrow import of_type

TEXTS = ["a cat", "the red dog on a hill with a bird and the blue cat in one photo", "two birds", ""]


@dataclass
class Case:
    """An encoder of ours, and what the library itself makes of normalized pixels or of texts."""

    encoder: Encoder
    name: str
    reference: Callable[[Any], Tensor]


def _open_clip(kind: str, folder: Path, modality: str) -> Case:
    config = tiny.open_clip_config(kind, folder)
    checkpoint = folder / ("weights.safetensors" if kind in ("siglip", "eos") else "weights.pt")
    theirs: Any = tiny.open_clip_model(config, kind, checkpoint)
    registry = IMAGE_ENCODERS if modality == "image" else TEXT_ENCODERS
    encoder = registry.build("open_clip", {"config": config, "pretrained": str(checkpoint)})
    normalize = {"normalize": False}
    if modality == "image":
        return Case(encoder, "open_clip", lambda pixels: theirs.encode_image(pixels, **normalize))
    length = config["text_cfg"]["context_length"]
    tokenize: Any = HFTokenizer(str(folder), context_length=length) if kind == "bert" else open_clip.SimpleTokenizer()
    return Case(encoder, "open_clip", lambda texts: theirs.encode_text(tokenize(texts, context_length=length), **normalize))


def _transformers(kind: str, folder: Path, modality: str) -> Case:
    theirs: Any = tiny.transformers_model(kind, folder)
    if modality == "image":
        # The processor of SigLIP 2 makes images of many sizes.
        fixed = {"preprocess": {"size": 32, "resize": "squash"}} if kind == "siglip2" else {}
        encoder = IMAGE_ENCODERS.build("transformers", {"name": str(folder), **fixed})
        return Case(encoder, "transformers", _vision_reference(kind, theirs))
    encoder = TEXT_ENCODERS.build("transformers", {"name": str(folder)})
    return Case(
        encoder, "transformers", _text_reference(kind, theirs, AutoTokenizer.from_pretrained(folder, padding_side="right"))
    )


def _vision_reference(kind: str, theirs: Any) -> Callable[[Tensor], Tensor]:
    def reference(pixels: Tensor) -> Tensor:
        if kind == "siglip2":
            patches = _patches_by_loop(pixels, 8)
            grid, mask = torch.tensor([[4, 4]] * len(pixels)), torch.ones(len(pixels), 16)
            output = theirs.get_image_features(patches, pixel_attention_mask=mask, spatial_shapes=grid)
            return of_type(Tensor, output.pooler_output)
        output = theirs.get_image_features(pixels) if hasattr(theirs, "get_image_features") else theirs(pixels)
        return of_type(Tensor, output.pooler_output.flatten(1))

    return reference


def _patches_by_loop(pixels: Tensor, patch: int) -> Tensor:
    rows = [
        torch.stack(
            [
                x[:, i : i + patch, j : j + patch].permute(1, 2, 0).flatten()
                for i in range(0, 32, patch)
                for j in range(0, 32, patch)
            ]
        )
        for x in pixels
    ]
    return torch.stack(rows)


def _text_reference(kind: str, theirs: Any, tokenizer: Any) -> Callable[[list[str]], Tensor]:
    def reference(texts: list[str]) -> Tensor:
        inputs = tokenizer(texts, padding="max_length", truncation=True, max_length=tiny.CONTEXT, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if kind in ("siglip", "siglip2"):
            return of_type(Tensor, theirs.get_text_features(input_ids=ids).pooler_output)
        if kind == "clip":
            return of_type(Tensor, theirs.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
        output = (theirs.encoder if kind == "t5" else theirs)(input_ids=ids, attention_mask=mask)
        if kind in ("bert", "roberta"):
            return of_type(Tensor, output.pooler_output)
        rows = [hidden[: int(m.sum())] for hidden, m in zip(output.last_hidden_state, mask, strict=True)]
        return torch.stack([row[-1] if kind == "gpt2" else row.mean(0) for row in rows])

    return reference


def _timm(name: str, folder: Path, modality: str) -> Case:
    args: dict[str, Any] = {"resnet": {"in_chans": 1}, "vit": {"image_size": 96}}.get(name.split("_")[-1], {})
    built = {"img_size" if key == "image_size" else key: value for key, value in args.items()}
    theirs: Any = tiny.shaken(timm.create_model(name, **built))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    theirs.reset_classifier(0)
    return Case(IMAGE_ENCODERS.build("timm", {"name": name, "pretrained": str(folder / "weights.pth"), **args}), "timm", theirs)


def _torchvision(name: str, folder: Path, modality: str) -> Case:
    theirs: Any = tiny.shaken(torchvision.models.get_model(name, weights=None))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    if name == "squeezenet1_1":
        theirs.classifier[1] = nn.Identity()
    else:
        theirs.fc = nn.Identity()
    args = {"name": name, "pretrained": str(folder / "weights.pth"), "image_size": 64}
    return Case(IMAGE_ENCODERS.build("torchvision", args), "torchvision", theirs)


_BUILDERS = {"open_clip": _open_clip, "transformers": _transformers, "timm": _timm, "torchvision": _torchvision}
IMAGES = [
    *(("open_clip", kind) for kind in ("clip", "eos", "resnet", "siglip", "coca")),
    *(("transformers", kind) for kind in ("clip", "siglip", "siglip2", "vit", "dinov2", "resnet")),
    *(("timm", name) for name in ("test_vit", "test_resnet", "test_convnext")),
    *(("torchvision", name) for name in ("squeezenet1_1", "shufflenet_v2_x0_5")),
]
TEXT_MODELS = [
    *(("open_clip", kind) for kind in ("clip", "eos", "siglip", "coca", "bert")),
    *(
        ("transformers", kind)
        for kind in ("clip", "siglip", "siglip2", "bert", "roberta", "distilbert", "modernbert", "gpt2", "t5")
    ),
]


def build_case(library: str, kind: str, modality: str, folder: Path) -> Case:
    case = _BUILDERS[library](kind, folder, modality)
    case.encoder.eval()
    return case


def inputs_of(encoder: Encoder) -> Any:
    """Two images, or `TEXTS`."""
    if isinstance(encoder, ImageEncoder):
        return pixels_of(encoder)
    return of_type(TextEncoder, encoder).tokenizer(TEXTS)


def pixels_of(encoder: ImageEncoder) -> Tensor:
    preprocess = encoder.preprocess
    shape = (2, preprocess.channels, preprocess.height, preprocess.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))
