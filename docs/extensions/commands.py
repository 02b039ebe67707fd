"""The help of every verb of the command line, as the commands print it."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from functools import cache

from mmcl.cli.main import main

# `eval` takes a verb of its own that no usage line lists: the options of every evaluator are those of one.
_FORMS_OF_EVAL = ["knn", "suite"]


def help_of_commands() -> str:
    """Markdown: a section for each verb, and one below it for each of its own verbs."""
    sections = []
    for verb in _verbs():
        sections.append(_section([verb], "##"))
        below = _FORMS_OF_EVAL if verb == "eval" else _verbs(verb)
        sections += [_section([verb, one], "###") for one in below]
    return "\n".join(sections)


def _section(words: list[str], heading: str) -> str:
    text = _help(*words)
    if words == ["train"]:
        text = re.split(r"\n\W*options\W*\n", text)[0]  # its options are the settings, which have a page of their own
    lines = [textwrap.fill(line, 78) if line[:1].isalnum() else line for line in text.rstrip().splitlines()]
    name = " ".join(words)
    title = "mmcl eval EVALUATOR" if words == ["eval", _FORMS_OF_EVAL[0]] else f"mmcl {name}"
    after = ["", "Every setting of [the configuration](configuration.md) is an option."] if words == ["train"] else []
    return "\n".join([f"{heading} `{title}`", "", "```text", *lines, "```", *after, ""])


def _verbs(*words: str) -> list[str]:
    """The verbs that a usage line offers in braces."""
    usage = _help(*words).split("\n\n")[0]
    found = re.search(r"\{([\w,\s]+)\}$", usage.strip())
    return re.split(r",\s*", found[1]) if found else []


@cache
def _help(*words: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
