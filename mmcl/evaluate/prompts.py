"""Prompt templates, and class embeddings for zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmcl.errors import UserError, unknown_name
from mmcl.evaluate.validation import unit_rows

Template = str | Callable[[str], str]
Templates = Template | Sequence[Template] | Mapping[str, Sequence[str]]
"""A sentence with a slot "{}" or "{c}" for the class name, a function of the name, a sequence of these, or a mapping from class
name to sentences. Or the name of a set of templates: "openai_imagenet" (80) or "simple_imagenet" (7)."""

TEMPLATE_SETS = ("openai_imagenet", "simple_imagenet")


class TextEncoder(Protocol):
    """A model that can encode texts."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts: float32 [M, D]."""
        ...


def class_embeddings(model: TextEncoder, class_names: Sequence[str], templates: Templates = "{}") -> np.ndarray:
    """Embeds each class as normalize(mean over the templates of normalize(text)), as in CLIP (Radford et al., 2021).

    Args:
        model: its `encode_text` embeds all sentences in one call.
        class_names: C different names.
        templates: prompt templates, see `Templates`; by default the name alone.

    Returns:
        float32 [C, D], unit length.

    Raises:
        UserError: there are no names, a name is empty or duplicated, a template has no placeholder and is not the name of a
            template set, or a class has no sentences.

    Example:
        >>> from mmcl import load_model
        >>> model = load_model("runs/clip_emoji")
        >>> class_embeddings(model, ["cat", "dog"], ["a photo of a {}", "a drawing of a {}"]).shape
        (2, 256)
    """
    return mean_embeddings(prompt_embeddings(model, class_names, templates))


def mean_embeddings(prompts: Sequence[Tensor]) -> np.ndarray:
    """Averages the sentences of each class as `prompt_embeddings` returns them: float32 [C, D], unit length."""
    return torch.nn.functional.normalize(torch.stack([own.mean(dim=0) for own in prompts]), dim=1).cpu().numpy()


def prompt_embeddings(model: TextEncoder, class_names: Sequence[str], templates: Templates) -> list[Tensor]:
    """Embeds the sentences of each class: C tensors, float32 [sentences of the class, D], unit length.

    The arguments and errors are those of `class_embeddings`.
    """
    sentences = class_sentences(class_names, templates)
    text_emb = unit_rows(model.encode_text([text for own in sentences for text in own]), "the text embeddings")
    return list(text_emb.split([len(own) for own in sentences]))


def class_sentences(class_names: Sequence[str], templates: Templates) -> list[list[str]]:
    """The sentences of each class. Arguments and errors are those of `class_embeddings`."""
    check_class_names(class_names)
    templates = _resolved(templates)
    return [_sentences(name, templates) for name in class_names]


def template_names(templates: Templates) -> list[str]:
    """The templates as sentences with the slot "{}", other than those by class."""
    several = _resolved(templates)
    assert not isinstance(several, Mapping)
    return [_fill(template, "{}") for template in _as_list(several)]


def check_class_names(class_names: Sequence[str]) -> None:
    """Raises UserError unless there is at least one name, and the names are distinct and not blank."""
    if isinstance(class_names, str) or not class_names:
        raise UserError(f"class names must be a list of one or more names, not {class_names!r}")
    blank = [number for number, name in enumerate(class_names) if not name.strip()]
    if blank:
        raise UserError(f"class name {blank[0]} is empty; give every class a name")
    double = [name for number, name in enumerate(class_names) if name in class_names[:number]]
    if double:
        raise UserError(f"class name {double[0]!r} is given twice; give each class once")


def _sentences(name: str, templates: Templates) -> list[str]:
    if isinstance(templates, Mapping):
        own = templates.get(name, ())
        own = [own] if isinstance(own, str) else list(own)
        if not own:
            raise UserError(f"the templates have no sentences for class {name!r}; add them, or give templates for all classes")
        return own
    return [_fill(template, name) for template in _as_list(templates)]


def _as_list(templates: Template | Sequence[Template]) -> list[Template]:
    several = [templates] if isinstance(templates, str) or callable(templates) else list(templates)
    if not several:
        raise UserError('no templates; give at least one, such as "a photo of a {}."')
    return several


def _resolved(templates: Templates) -> Templates:
    """The templates of a named set, or those given."""
    return template_set(templates) if isinstance(templates, str) and not _slot(templates) else templates


def template_set(name: str) -> list[Callable[[str], str]]:
    """Templates of a named set, from open_clip. Raises UserError for an unknown name, or a template without a slot."""
    if name not in TEMPLATE_SETS:
        raise UserError(
            f'template {name!r} has no slot for the class name; write it with "{{}}", as in "a photo of a {{}}.". '
            f"As the name of a set: {unknown_name('template set', name, TEMPLATE_SETS)}"
        )
    from mmcl.encoders.open_clip import imagenet_templates

    return imagenet_templates(name)


def _fill(template: Template, name: str) -> str:
    """Inserts the name at the placeholder. Not with `str.format`, because a name or a template may contain other braces.

    A template that is nothing but the placeholder gives the name itself, with its stored row if it has one.
    """
    if callable(template):
        return template(name)
    slot = _slot(template)
    if slot == template:
        return name
    if slot is None:
        raise UserError(
            f'template {template!r} has no slot for the class name; write it with "{{}}", as in "a photo of a {{}}."'
        )
    return template.replace(slot, name)


def _slot(template: str) -> str | None:
    return next((slot for slot in ("{c}", "{}") if slot in template), None)
