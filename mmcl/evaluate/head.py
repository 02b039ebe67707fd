"""Heads: what a probe or the prompts of classes have learned about the embeddings of one model, as a file.

A file is a safetensors file with the tensors `weight` and `bias`, and the other attributes of `Head` as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmcl.config import from_dict
from mmcl.errors import UserError
from mmcl.evaluate.prompts import Templates, template_names
from mmcl.evaluate.validation import Array, unit_rows
from mmcl.files.atomic import write_file
from mmcl.files.untrusted import existing_file, parse_json
from mmcl.types import EmbeddingModel

FORMAT_VERSION = 1
MAX_BYTES = 2**30
MAX_CLASSES = 10**6
_KEY = "mmcl_head"

Probability = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What a file says about a head besides its weights: the attributes of `Head`, and the version of the format."""

    format_version: int
    class_names: tuple[str, ...]
    model: str
    probability: Probability
    thresholds: tuple[float | None, ...] | None
    how: dict[str, str]


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier of the embeddings of one model: logits = weight @ embedding + bias.

    Attributes:
        weight_CD, bias_C: float64.
        class_names: C different names.
        model: fingerprint of the model.
        probability: "softmax" over the classes, or a "sigmoid" for each, so that an image may show several classes, or none.
        thresholds: a logit for each class, from which on the answer is yes; None for a class, or for all, without one.
        how: how it was fitted: the evaluator, the data, the solver or the templates.

    Raises:
        UserError: shapes do not match, a number is not finite, or a name is empty or given twice.

    Example:
        >>> head = Head(np.eye(2), np.zeros(2), ("cat", "dog"), "fingerprint of the model", "softmax")
        >>> head.save("pets.safetensors")
        >>> Head.load("pets.safetensors").class_names
        ('cat', 'dog')
    """

    weight_CD: np.ndarray
    bias_C: np.ndarray
    class_names: tuple[str, ...]
    model: str
    probability: Probability
    thresholds: tuple[float | None, ...] | None = None
    how: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if self.weight_CD.ndim != 2 or self.weight_CD.shape[0] != classes or 0 in self.weight_CD.shape:
            raise UserError(f"a head of {classes} classes has weights of shape {list(self.weight_CD.shape)}")
        if self.bias_C.shape != (classes,):
            raise UserError(f"a head of {classes} classes has a bias of shape {list(self.bias_C.shape)}")
        if not (_is_usable(self.weight_CD) and _is_usable(self.bias_C)):
            raise UserError("the numbers of a head must be finite float64")
        if len(set(self.class_names)) < classes or not all(name.strip() for name in self.class_names):
            raise UserError("the class names of a head must be different, and none empty")
        if self.thresholds is not None and len(self.thresholds) != classes:
            raise UserError(f"a head of {classes} classes has {len(self.thresholds)} thresholds")
        if any(one is not None and not np.isfinite(one) for one in self.thresholds or ()):
            raise UserError("the thresholds of a head must be finite")

    def logits(self, image_emb: Array) -> np.ndarray:
        """Logits of embeddings: float64 [N, C].

        Args:
            image_emb: finite rows [N, D] of the model, scaled to unit length.

        Raises:
            UserError: the rows are of another width, or not finite.
        """
        image = unit_rows(image_emb, "image_emb").cpu().double().numpy()
        if image.shape[1] != self.weight_CD.shape[1]:
            raise UserError(f"image_emb has {image.shape[1]} columns, and the head is for {self.weight_CD.shape[1]}")
        logits: np.ndarray = image @ self.weight_CD.T + self.bias_C
        return logits

    def to_bytes(self) -> bytes:
        """The content of a file."""
        from safetensors.numpy import save

        facts = HeadFacts(FORMAT_VERSION, self.class_names, self.model, self.probability, self.thresholds, dict(self.how or {}))
        tensors = {"weight": np.ascontiguousarray(self.weight_CD), "bias": np.ascontiguousarray(self.bias_C)}
        return save(tensors, {_KEY: json.dumps(asdict(facts), allow_nan=False)})

    def for_report(self, evaluator: str, data: str, model: str) -> dict[str, bytes]:
        """The head as `Report.heads`, named after what it is from."""
        return {", ".join(filter(None, (evaluator, data, model))): self.to_bytes()}

    def save(self, path: str | Path) -> None:
        """Writes a file, atomically."""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Reads a file that `save` wrote, which may come from anyone: it holds numbers and names, and no code.

        Raises:
            UserError: the file is missing, larger than 1 GB, damaged, or not a head.
        """
        path = existing_file(path)
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path}: {size:,} bytes are too many for a head; at most {MAX_BYTES:,} are read")
        tensors, text = _content(path)
        facts = from_dict(HeadFacts, parse_json(text, str(path)), str(path))
        if facts.format_version != FORMAT_VERSION:
            raise UserError(f"{path}: a head of format {facts.format_version}, and this version of mmcl reads {FORMAT_VERSION}")
        if len(facts.class_names) > MAX_CLASSES:
            raise UserError(f"{path}: {len(facts.class_names):,} classes are too many; at most {MAX_CLASSES:,} are read")
        try:
            return cls(
                tensors["weight"],
                tensors["bias"],
                facts.class_names,
                facts.model,
                facts.probability,
                facts.thresholds,
                facts.how,
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def zero_shot_head(
    class_emb: np.ndarray, class_names: Sequence[str], templates: Templates, model: EmbeddingModel, how: Mapping[str, str]
) -> Head:
    """A head from the texts of classes, at the temperature of the model.

    Args:
        class_emb: [C, D], as returned by `class_embeddings`.
        templates: of which it was made, for `Head.how`.
        model: the model.
        how: more of `Head.how`.

    Raises:
        UserError: the model has no temperature.
    """
    if model.logit_scale is None:
        raise UserError("this model was trained without a temperature, and a zero-shot head has no probabilities")
    return Head(
        class_emb.astype(np.float64) * model.logit_scale,
        np.full(len(class_emb), model.logit_bias or 0.0),
        tuple(class_names),
        model.fingerprint,
        "softmax" if model.logit_bias is None else "sigmoid",
        how={**how, "templates": templates_to_text(templates)},
    )


def templates_to_text(templates: Templates) -> str:
    """Templates as JSON: a list of sentences with the slot "{}", or an object with the sentences of each class."""
    if isinstance(templates, Mapping):
        return json.dumps({name: [own] if isinstance(own, str) else list(own) for name, own in templates.items()})
    return json.dumps(template_names(templates))


def _is_usable(numbers: np.ndarray) -> bool:
    return numbers.dtype == np.float64 and bool((np.abs(numbers) < 1e100).all())


def _content(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The tensors and the JSON of a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is not None and sorted(file.keys()) == ["bias", "weight"]:
                return {name: file.get_tensor(name) for name in ("weight", "bias")}, text
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or not a safetensors file ({' '.join(str(error).split())}); save the head again"
        ) from None
    raise UserError(f"{path}: not a head; mmcl eval writes heads into the folder of --out")
