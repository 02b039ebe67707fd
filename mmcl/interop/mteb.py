"""Models of mmcl as models of the benchmark library mteb, which is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcl.errors import UserError, how_to_install
from mmcl.interop.model import Model
from mmcl.interop.onnx_model import OnnxModel
from mmcl.interop.truncated import TruncatedModel
from mmcl.progress import progress_bar
from mmcl.types import EmbeddingModel

if TYPE_CHECKING:
    import torch
    from mteb.models import ModelMeta
    from torch.utils.data import DataLoader

_ORGANIZATION = "mmcl"


class MTEBModel:
    """Any model of mmcl as a model that mteb evaluates: give it to `mteb.evaluate`.

    Inputs with a text and an image have the sum of both embeddings, as with the models of CLIP in mteb. Instructions and the
    prompts of mteb are left out, as these models were not trained with any. mteb must be installed (extra `mteb`).

    Args:
        model: the model.
        name: name in the results, which are kept by name and fingerprint; mteb reads it as that of a repository,
            "mmcl/NAME" unless an organization is given.

    Example:
        >>> from mmcl import MTEBModel, load_model
        >>> model = MTEBModel(load_model("runs/clip_emoji"), "clip_emoji")
        >>> batches = [{"text": ["a cat", "a dog"]}, {"text": ["a red apple"]}]
        >>> model.encode(batches, task_metadata=None, hf_split="test", hf_subset="default").shape
        (3, 256)
    """

    def __init__(self, model: EmbeddingModel, name: str):
        self.model = model
        self.name = name if "/" in name else f"{_ORGANIZATION}/{name}"

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb keeps beside the results. The fingerprint of the weights is the revision; what is not known is None.

        Raises:
            UserError: mteb is not installed.
        """
        whole = self.model.model if isinstance(self.model, TruncatedModel) else self.model
        weights = list(whole.towers.parameters()) if isinstance(whole, Model) else None
        tokenizer = getattr(whole, "tokenizer", None) if whole.has_text else None
        meta: ModelMeta = import_mteb().models.ModelMeta(
            loader=None,
            name=self.name,
            revision=self.model.fingerprint,
            release_date=None,
            languages=None,
            n_parameters=weights and sum(one.numel() for one in weights),
            memory_usage_mb=weights and sum(one.numel() * one.element_size() for one in weights) / 2**20,
            max_tokens=getattr(tokenizer, "context_length", None),
            embed_dim=getattr(self.model, "embed_dim", None),
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["ONNX"] if isinstance(whole, OnnxModel) else ["PyTorch"] if isinstance(whole, Model) else [],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=[*(["image"] if getattr(whole, "has_image", True) else []), *(["text"] if whole.has_text else [])],
        )
        return meta

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> np.ndarray:
        """Embeds the inputs of a task.

        Args:
            inputs: batches with the columns "text", "image" or both.
            task_metadata, hf_split, hf_subset, prompt_type: what mteb says about the task; they change nothing.
            batch_size: that of `inputs`.
            show_progress_bar: whether to show a progress bar.
            precision: "float32".

        Returns:
            float32 [N, D], unit length.

        Raises:
            UserError: the model does not embed a column, or the precision is another one.
        """
        if precision != "float32":
            raise UserError(f"the embeddings are float32, and precision {precision!r} is not supported; leave it out")
        with progress_bar(inputs, total=len(inputs), shown=show_progress_bar, unit="step") as batches:
            return np.concatenate([self._embedded(batch) for batch in batches])

    def _embedded(self, batch: Mapping[str, Any]) -> np.ndarray:
        foreign = sorted({"audio", "video"} & {*batch})
        if foreign or not {"image", "text"} & {*batch}:
            raise UserError(f"{self.name} embeds images and texts, and these inputs have {', '.join(foreign or batch)}")
        parts = [self.model.encode_image(batch["image"])] if "image" in batch else []
        if "text" in batch:
            parts.append(self.model.encode_text(batch["text"]))
        if len(parts) == 1:
            return parts[0]
        both = parts[0] + parts[1]
        unit: np.ndarray = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), np.float32(1e-12))
        return unit

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines [N, M] of rows [N, D] and [M, D]."""
        cosine: torch.Tensor = import_mteb().similarity_functions.cos_sim(embeddings1, embeddings2)
        return cosine

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines [N] of rows [N, D] and [N, D], row by row."""
        cosine: torch.Tensor = import_mteb().similarity_functions.pairwise_cos_sim(embeddings1, embeddings2)
        return cosine


def import_mteb() -> Any:
    """Returns the module mteb. Raises UserError if it is not installed."""
    try:
        import mteb
        import mteb.similarity_functions
    except ImportError as error:
        raise UserError(f"the tasks of mteb need it ({error}): {how_to_install('mteb')}") from None
    return mteb
