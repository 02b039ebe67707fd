"""Folders of exported graphs, ONNX or torch.export, and what stands beside the graphs; it does not import torch.

image.SUFFIX     pixels, float32 [batch, C, H, W] in [0, 1] -> image_embeds, float32 [batch, D], unit length; of a classifier
                 also image_logits, float32 [batch, classes]
text.SUFFIX      input_ids and attention_mask, int64 [batch, sequence] -> text_embeds, float32 [batch, D], unit length
preprocess.json  how an image becomes pixels, see `Preprocess`; the graph normalizes them itself
tokenizer.json   the tokenizer in the format of the `tokenizers` library
config.json      `GraphFile`
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmcl.config import from_dict
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.errors import UserError
from mmcl.files.untrusted import read_json
from mmcl.interop.encoding import Embedding
from mmcl.interop.model_file import check_scale, damaged
from mmcl.preprocess import Preprocess

GRAPHS_VERSION = 1
CONFIG, PREPROCESS, TOKENIZER = "config.json", "preprocess.json", "tokenizer.json"
IMAGE_INPUTS, TEXT_INPUTS = ("pixels",), ("input_ids", "attention_mask")
IMAGE_EMBEDS, IMAGE_LOGITS, TEXT_EMBEDS = "image_embeds", "image_logits", "text_embeds"

Runtime = Literal["onnx", "pt2"]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFile:
    """The config.json of a folder of graphs.

    Attributes:
        graphs_version: version of this format.
        runtime: format of the graphs, and their suffix.
        towers: "image" and "text", or one of them.
        embed_dim: width D of the embeddings.
        embedding, logit_scale, logit_bias, class_names: as in `Model`.
        tokenizer: `context_length`, `pad_id`, `clean` and the other settings of `Tokenizer.to_json`, without the backend.
        precision: type of the weights.
        fingerprint: that of the exported model.
    """

    graphs_version: int
    runtime: Runtime
    towers: tuple[Literal["image", "text"], ...]
    embed_dim: int
    embedding: Embedding
    logit_scale: float | None
    logit_bias: float | None
    class_names: tuple[str, ...] | None
    tokenizer: dict[str, Any] | None
    precision: Precision
    fingerprint: str

    def __post_init__(self) -> None:
        if not self.towers or ("text" in self.towers) != (self.tokenizer is not None):
            raise UserError("towers are image, text or both, and a text tower has a tokenizer")
        if self.embed_dim < 1:
            raise UserError(f"embed_dim is {self.embed_dim}: it is at least 1")
        check_scale(self.logit_scale)


def write_settings(folder: Path, file: GraphFile, preprocess: Preprocess | None, tokenizer: Tokenizer | None) -> None:
    """Writes everything but the graphs; without a preprocessing or a tokenizer, their files are left out."""
    _write(folder / CONFIG, asdict(file))
    if preprocess is not None:
        _write(folder / PREPROCESS, asdict(preprocess))
    if tokenizer is not None:
        _write(folder / TOKENIZER, tokenizer.to_json()["backend"], indent=None)  # large


def read_settings(folder: Path) -> tuple[GraphFile, Preprocess | None, Tokenizer | None]:
    """Reads what `write_settings` wrote. Raises UserError if a file is missing, damaged or of another version."""
    path = folder / CONFIG
    content = read_json(path)
    if content.get("graphs_version") != GRAPHS_VERSION:
        raise UserError(f"{folder}: not a folder of graphs of format version {GRAPHS_VERSION}; export the model again")
    try:
        file = from_dict(GraphFile, content, str(path))
    except UserError as error:
        raise damaged(path, str(error).removeprefix(f"{path}: ")) from None
    preprocess = Preprocess.from_json(read_json(folder / PREPROCESS)) if "image" in file.towers else None
    if file.tokenizer is None:
        return file, preprocess, None
    tokenizer = {**file.tokenizer, "backend": read_json(folder / TOKENIZER)}
    return file, preprocess, Tokenizer.from_json(tokenizer, where=str(folder / TOKENIZER))


def _write(path: Path, content: Any, *, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False), encoding="utf-8")
