"""The entries of the registries: what a configuration may name, with the arguments that it may give."""

from __future__ import annotations

import inspect

from mmcl.data import SOURCES
from mmcl.data.augment import AUGMENTATIONS
from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
from mmcl.evaluate import EVALUATORS
from mmcl.interop.export import EXPORTS
from mmcl.losses import LOSSES
from mmcl.methods import METHODS

_REGISTRIES = {
    "methods": METHODS,
    "image_encoders": IMAGE_ENCODERS,
    "text_encoders": TEXT_ENCODERS,
    "heads": HEADS,
    "adapters": ADAPTERS,
    "sources": SOURCES,
    "augmentations": AUGMENTATIONS,
    "evaluators": EVALUATORS,
    "exports": EXPORTS,
}


def entries(kind: str) -> str:
    """Markdown for a registry, `methods`, or for one entry of it, `methods:simclr`: a heading, and the factory's docstring."""
    kind, _, one = kind.partition(":")
    registry = _REGISTRIES[kind]
    sections = []
    for name in [one] if one else registry:
        factory = registry[name]
        directive = "autoclass" if inspect.isclass(factory) else "autofunction"
        index = ["   :no-index:"] if one else []
        lines = [] if one else [f"### `{name}`", ""]
        path = f"{factory.__module__}.{factory.__qualname__}"
        sections.append("\n".join([*lines, "```{eval-rst}", f".. {directive}:: {path}", *index, "```", ""]))
    return "\n".join(sections)


def table_of_losses() -> str:
    """Markdown: every loss of `mmcl.losses` with what it needs, as the table of the losses says it."""
    rows = ["| loss | needs |", "|---|---|"]
    for name in LOSSES:
        function = LOSSES[name].__name__
        rows.append(f"| {{py:func}}`{function} <mmcl.losses.{function}>` | {LOSSES.entry(name).needs} |")
    return "\n".join([*rows, ""])
