"""Formulas as MathML, which browsers show without a script and without a network."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LOG = logging.getLogger(__name__)


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula in a line."""
    self.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a displayed formula."""
    self.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    formula = re.sub(r"\\[bB]ig(?![a-zA-Z])", "", node.astext())  # MathML sizes delimiters by itself
    try:
        return tex2mathml(formula, as_block=as_block)
    except MathError as error:
        _LOG.warning("%s: %s", node.astext(), error, location=node)
        return ""
