"""The complete help of every verb of the command line, as the commands print it."""

from __future__ import annotations

import contextlib
import io

from mmcl.cli.data import VERBS as DATA_VERBS
from mmcl.cli.main import VERBS, main

# The flags of every evaluator are those of one.
_BELOW = {"eval": ["knn", "suite", "mteb"], "data": list(DATA_VERBS)}


def help_of_commands() -> str:
    """Markdown: a section for each verb, and one below it for each of its own verbs."""
    sections = []
    for verb in VERBS:
        sections.append(_section([verb], "##"))
        sections += [_section([verb, one], "###") for one in _BELOW.get(verb, [])]
    return "\n".join(sections)


def _section(words: list[str], heading: str) -> str:
    # Of training, the complete help is a page of its own: the settings.
    text = _printed([*words, "--help" if words == ["train"] else "--help_all"])
    title = "mmcl eval EVALUATOR" if words == ["eval", "knn"] else f"mmcl {' '.join(words)}"
    after = ["", "Every setting of [the configuration](configuration.md) is an option."] if words == ["train"] else []
    return "\n".join([f"{heading} `{title}`", "", "```text", text.rstrip(), "```", *after, ""])


def _printed(words: list[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(words)
    return printed.getvalue()
