"""What is known of a method from its code and the shipped configurations."""

from __future__ import annotations

from functools import cache

from components import entries

from mmcl.config import load_config
from mmcl.config.shipped import shipped_configs, summary
from mmcl.methods import METHODS

_VIEWS = {
    ("image",): "one view of every image",
    ("text",): "one view of every text",
    ("image", "image"): "two augmented views of every image",
    ("text", "text"): "two views of every text",
    ("image", "text"): "pairs of images and texts",
    ("image", "image", "image", "text"): "pairs of images and texts, and two further views of every image",
}


def facts_of_method(name: str) -> str:
    """Markdown: what the method needs, what it exports, the shipped configurations that use it, and its arguments."""
    method = METHODS[name]
    needs = [_VIEWS[tuple(sorted(method.views.values()))]]
    needs += ["class labels"] if method.positives == "labels" else []
    needs += ["a trained classifier, `teacher`"] if method.takes_teacher else []
    exports = {"projection": "the projection, of unit length", "features": "the features before the projection head"}
    lines = [
        "## At a glance",
        "",
        "| | |",
        "|---|---|",
        f"| needs | {', '.join(needs)} |",
        f"| what a saved model gives | {exports[method.embedding]} |",
        f"| shipped configurations | {_configurations(name)} |",
        "",
        "## Arguments",
        "",
    ]
    return "\n".join([*lines, entries(f"methods:{name}")])


def _configurations(method: str) -> str:
    names = [name for name, used in _methods_of_configurations().items() if used == method]
    return "<br>".join(f"`{name}`: {summary(shipped_configs()[name])}" for name in names) or "none"


@cache
def _methods_of_configurations() -> dict[str, str]:
    runs = [name for name in shipped_configs() if not name.startswith("eval/")]
    return {name: load_config(name).method.name for name in runs}
