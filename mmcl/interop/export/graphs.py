"""Tracing of both towers to graphs by torch.export, for ONNX and for torch's own file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.untrusted import reason
from mmcl.interop.encoding import Embedding
from mmcl.interop.export.target import ExportTarget
from mmcl.interop.graph_folder import (
    GRAPHS_VERSION,
    IMAGE_EMBEDS,
    IMAGE_INPUTS,
    IMAGE_LOGITS,
    TEXT_EMBEDS,
    TEXT_INPUTS,
    GraphFile,
    Runtime,
    write_settings,
)
from mmcl.interop.model import Model, embed
from mmcl.types import Tokens


class ImageGraph(nn.Module):
    """Pixels, float32 [B, C, H, W] in [0, 1], to a dictionary of embeddings [B, D] and, of a classifier, logits [B, C]."""

    def __init__(self, tower: Tower, embedding: Embedding, *, has_logits: bool):
        super().__init__()
        self.tower = tower
        self.embedding = embedding
        self.has_logits = has_logits

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        if not self.has_logits:
            return {IMAGE_EMBEDS: embed(self.tower, pixels, self.embedding)}
        # One pass of the encoder for both: it takes half the time, and onnxscript 0.5 merges batch norms into weights that two
        # passes share.
        features: Tensor = self.tower.encoder(pixels)
        logits: Tensor = self.tower.head(features)
        rows = logits if self.embedding == "projection" else features
        return {IMAGE_EMBEDS: nn.functional.normalize(rows.float(), dim=-1), IMAGE_LOGITS: logits}


class TextGraph(nn.Module):
    """Token ids and their mask, int64 [B, L], to a dictionary of embeddings [B, D]."""

    def __init__(self, tower: Tower, embedding: Embedding):
        super().__init__()
        self.tower = tower
        self.embedding = embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {TEXT_EMBEDS: embed(self.tower, Tokens(input_ids, attention_mask.bool()), self.embedding)}


class GraphExport(ExportTarget):
    """Base of the formats of graphs.

    Attributes:
        runtime: format of the graphs, and their suffix.
    """

    runtime: ClassVar[Runtime]
    own_preprocessing = True

    def write(self, folder: Path) -> Sequence[str]:
        """Writes a graph for each tower, and the settings beside them (`mmcl.interop.graph_folder`)."""
        model = self.model
        for name, tower in model.towers.items():
            if name == "image":
                graph: nn.Module = ImageGraph(tower, model.embedding, has_logits=model.class_names is not None)  # type: ignore[arg-type]
                inputs, outputs = _example_images(model), [IMAGE_EMBEDS, IMAGE_LOGITS][: 1 if model.class_names is None else 2]
            else:
                graph = TextGraph(tower, model.embedding)  # type: ignore[arg-type]
                inputs, outputs = _example_texts(model), [TEXT_EMBEDS]
            self.save(traced(graph, inputs, name), folder / f"{name}.{self.runtime}", inputs=list(inputs), outputs=outputs)
        tokenizer = model.tokenizer if model.has_text else None
        settings = GraphFile(
            graphs_version=GRAPHS_VERSION,
            runtime=self.runtime,
            towers=tuple(model.towers),  # type: ignore[arg-type]
            embed_dim=model.embed_dim,
            embedding=model.embedding,
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            class_names=None if model.class_names is None else tuple(model.class_names),
            tokenizer=None if tokenizer is None else {k: v for k, v in tokenizer.to_json().items() if k != "backend"},
            precision=self.precision,
            fingerprint=model.fingerprint,
        )
        write_settings(folder, settings, model.preprocess if model.has_image else None, tokenizer)
        return ()

    @abstractmethod
    def save(self, program: ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Writes one graph, whose inputs and outputs have these names, in this order."""


def axes_of(name: str) -> Sequence[str]:
    """Returns the first axes of an input, those of any length, by name."""
    return ("batch",) if name in IMAGE_INPUTS else ("batch", "sequence")


def traced(graph: nn.Module, inputs: Mapping[str, Tensor], name: str) -> ExportedProgram:
    """Traces a graph whose batch and sequence have any length. Raises UserError if it cannot be traced so."""
    lengths = {key: dict.fromkeys(range(len(axes_of(key))), Dim.DYNAMIC) for key in inputs}
    try:
        with torch.no_grad():
            return torch.export.export(graph.eval(), (), dict(inputs), dynamic_shapes=lengths, strict=False)
    except Exception as error:  # whatever a model's own code, or the tracing of it, raises
        raise UserError(
            f"the {name} tower cannot become a graph for batches of any size ({reason(error)}); try --to own"
        ) from None


def _example_images(model: Model) -> dict[str, Tensor]:
    """Two: of one, tracing would make the size of the batch a constant."""
    shown = model.preprocess
    return dict.fromkeys(IMAGE_INPUTS, torch.full((2, shown.channels, shown.height, shown.width), 0.5))


def _example_texts(model: Model) -> dict[str, Tensor]:
    tokens = model.tokenizer(["two", "three words here"])
    return dict(zip(TEXT_INPUTS, [tokens.ids, tokens.mask.long()], strict=True))
