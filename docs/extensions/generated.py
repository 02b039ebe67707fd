"""Sphinx extension: a line `<!-- generated: KIND ARGUMENT -->` of a page becomes Markdown that is made from the package itself.

Whatever is defined in the code (settings, commands, components, public names) is never copied by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from api import public_names
from commands import help_of_commands
from components import entries, table_of_losses
from docstrings import translate
from mathml import visit_block, visit_inline
from methods import facts_of_method
from settings import settings_reference
from sphinx.application import Sphinx

_MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)

_MAKERS: dict[str, Callable[..., str]] = {
    "api": public_names,
    "commands": help_of_commands,
    "entries": entries,
    "method": facts_of_method,
    "losses": table_of_losses,
    "settings": settings_reference,
}


def _replace(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = _MARK.sub(lambda mark: _MAKERS[mark[1]](*filter(None, [mark[2]])), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _replace)
    app.connect("autodoc-process-docstring", translate, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True}
