"""Sphinx configuration: `sphinx-build -W docs out` builds the documentation; a warning is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent)]
# The width of `mmcl VERB --help`, and no colors: the commands' help is printed into a page.
os.environ.update(COLUMNS="78", NO_COLOR="1", TERM="dumb")

import mmcl  # noqa: E402  (found by the path above)

project = "mmcl"
copyright = "The mmcl authors"
version = release = mmcl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated"]
exclude_patterns = ["extensions"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

smartquotes_action = "qe"  # no dashes: `--` begins a flag
default_role = "literal"  # docstrings quote code by single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape", "Requirements", "Relations", "Source"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 70
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"mmcl {release}"
html_static_path = ["static"]
html_css_files = ["mmcl.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
