"""Modules of sentence-transformers that are a model: its own where they can, else one of mmcl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor

from mmcl.encoders.tower import GIVEN, PixelNorm
from mmcl.encoders.transformers import READS_PATCHES, TRAINED_WITHOUT_MASK
from mmcl.errors import UserError
from mmcl.interop.export.single_towers import Layer, SingleTower, single_towers
from mmcl.interop.export.transformers import LoadedTransformers, TransformersExport
from mmcl.interop.model import Model
from mmcl.interop.sentence_transformers import Towers
from mmcl.types import Tokens


class Form(Protocol):
    """How a model becomes modules."""

    def modules(self, scratch: Path) -> tuple[list[Any], list[str]]:
        """Returns the modules, built from files in a temporary folder, and what is lost."""
        ...

    def features(self, inputs: Tensor | Tokens) -> dict[str, Any]:
        """Returns the input of the modules for pixels in [0, 1], or for tokens."""
        ...


def form_of(model: Model) -> Form:
    """Returns the first form that a model has. Raises UserError for an encoder that no file builds again."""
    for form in (ClipLike, Routed):
        try:
            return form(model)
        except UserError:
            continue
    given = next((name for name, tower in model.towers.items() if tower.spec is None or tower.spec.encoder == GIVEN), None)  # type: ignore[union-attr]
    if given is not None:
        raise UserError(f"the {given} encoder is a module from Python, which no folder builds again; try --to onnx")
    return OwnModule(model)


class ClipLike:
    """One module of transformers with both towers."""

    def __init__(self, model: Model):
        self.target = TransformersExport(model)
        self._model = model
        self._model_type = self.target.dual.config["model_type"]
        self._loaded: LoadedTransformers | None = None

    def modules(self, scratch: Path) -> tuple[list[Any], list[str]]:
        """See `Form`."""
        lost = list(self.target.write(scratch))
        length = self._model.tokenizer.context_length
        without_mask = self._model_type in TRAINED_WITHOUT_MASK
        texts = {"padding": "max_length", "max_length": length, "truncation": True, "return_attention_mask": False}
        kwargs: dict[str, Any] = {"text": texts} if without_mask else {}
        if self._model_type in READS_PATCHES:  # whose processor has defaults of its own
            kwargs["image"] = self.target.patches
        transformer = Transformer(
            str(scratch),
            modality_config={
                name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in ("text", "image")
            },
            module_output_name="sentence_embedding",
            processing_kwargs=kwargs,
        )
        self._loaded = LoadedTransformers(scratch, pads=without_mask)
        return [transformer, Normalize()], lost

    def features(self, inputs: Tensor | Tokens) -> dict[str, Any]:
        """See `Form`."""
        assert self._loaded is not None, "written before"
        if isinstance(inputs, Tensor):
            return {**self._loaded.pixel_inputs(inputs), "modality": "image"}
        return {**self._loaded.token_inputs(inputs), "modality": "text"}


class Routed:
    """A module of transformers for each tower, and its head as further modules."""

    def __init__(self, model: Model):
        self._towers: Mapping[str, SingleTower] = single_towers(model)
        self._model = model

    def modules(self, scratch: Path) -> tuple[list[Any], list[str]]:
        """See `Form`."""
        routes, lost = {}, []
        for name, tower in self._towers.items():
            folder = scratch / name
            folder.mkdir()
            lost += tower.write(folder)
            output = "sentence_embedding" if tower.pooling is None else "token_embeddings"
            transformer = Transformer(
                str(folder),
                modality_config={name: {"method": "forward", "method_output_name": tower.output}},
                module_output_name=output,
            )
            pooling = [] if tower.pooling is None else [Pooling(tower.width, tower.pooling)]
            routes[name] = [transformer, *pooling, *map(_dense, tower.layers)]
        router = Router(routes, default_route="text", route_mappings={(None, name): name for name in routes})
        return [router, Normalize()], lost

    def features(self, inputs: Tensor | Tokens) -> dict[str, Any]:
        """See `Form`."""
        if isinstance(inputs, Tensor):
            return {"pixel_values": PixelNorm(self._model.preprocess)(inputs), "modality": "image"}
        padding = self._towers["text"].pad_id
        return {
            "input_ids": inputs.ids.masked_fill(~inputs.mask, padding),
            "attention_mask": inputs.mask.long(),
            "modality": "text",
        }


class OwnModule:
    """mmcl's own module."""

    def __init__(self, model: Model):
        self._model = model

    def modules(self, scratch: Path) -> tuple[list[Any], list[str]]:
        """See `Form`."""
        return [Towers(self._model)], ["the folder is loaded with trust_remote_code=True, and by an installed mmcl"]

    def features(self, inputs: Tensor | Tokens) -> dict[str, Any]:
        """See `Form`."""
        if isinstance(inputs, Tensor):
            return {"pixel_values": inputs, "modality": "image"}
        return {"input_ids": inputs.ids, "attention_mask": inputs.mask.long(), "modality": "text"}


def _dense(layer: Layer) -> Dense:
    return Dense(
        layer.weight.shape[1],
        layer.weight.shape[0],
        bias=layer.bias is not None,
        activation_function=layer.activation,
        init_weight=layer.weight,
        init_bias=layer.bias,
    )
