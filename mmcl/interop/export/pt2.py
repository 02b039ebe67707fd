"""Graphs of both towers in torch's own file format, which torch loads without the code of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram

from mmcl.data.images.tensors import read_pixels
from mmcl.encoders.tokenizers import Tokenizer
from mmcl.interop.encoding import read_in_batches
from mmcl.interop.export.graphs import GraphExport
from mmcl.interop.export.target import LoadedExport
from mmcl.interop.graph_folder import IMAGE_EMBEDS, IMAGE_LOGITS, TEXT_EMBEDS, read_settings
from mmcl.preprocess import Preprocess
from mmcl.types import Tokens


class Pt2Export(GraphExport):
    """Graphs of torch.export for images and texts, which torch runs without mmcl: any model whose towers can be traced."""

    runtime = "pt2"

    def save(self, program: ExportedProgram, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """See `GraphExport`."""
        torch.export.save(program, path)

    def load(self, folder: Path) -> LoadedExport:
        """Loads the graphs by torch, and the settings beside them."""
        file, preprocess, tokenizer = read_settings(folder)
        programs = {str(name): torch.export.load(folder / f"{name}.pt2") for name in file.towers}
        return _LoadedPt2({name: program.module() for name, program in programs.items()}, preprocess, tokenizer)

    def usage(self, place: str, *, on_hub: bool = False) -> str:
        """See `ExportTarget`."""
        return (
            "import torch\n\n"
            f'image = torch.export.load("{place}/image.pt2").module()\n'
            f'text = torch.export.load("{place}/text.pt2").module()\n'
            f'image(pixels=pixels)["{IMAGE_EMBEDS}"], text(input_ids=ids, attention_mask=mask)["{TEXT_EMBEDS}"]'
        )


class _LoadedPt2:
    def __init__(self, graphs: Mapping[str, Callable[..., Any]], preprocess: Preprocess | None, tokenizer: Tokenizer | None):
        self._graphs = graphs
        self._preprocess = preprocess
        self._tokenizer = tokenizer

    @torch.no_grad()
    def embed_pixels(self, pixels_BCHW: Tensor) -> np.ndarray:
        rows: np.ndarray = self._graphs["image"](pixels=pixels_BCHW)[IMAGE_EMBEDS].numpy()
        return rows

    @torch.no_grad()
    def pixel_logits(self, pixels_BCHW: Tensor) -> np.ndarray:
        logits: np.ndarray = self._graphs["image"](pixels=pixels_BCHW)[IMAGE_LOGITS].numpy()
        return logits

    @torch.no_grad()
    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        output = self._graphs["text"](input_ids=tokens.ids, attention_mask=tokens.mask.long())
        rows: np.ndarray = output[TEXT_EMBEDS].numpy()
        return rows

    def encode_image(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        preprocess = self._preprocess
        assert preprocess is not None, "there is an image tower"
        batches = read_in_batches(images, preprocess, None, lambda image, name: read_pixels(image, preprocess, name=name))
        return np.concatenate([self.embed_pixels(torch.stack(batch).float() / 255) for batch in batches])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        assert self._tokenizer is not None, "there is a text tower"
        return self.embed_tokens(self._tokenizer(texts))
