"""Text in tables that a spreadsheet may open."""

from __future__ import annotations

from typing import Any


def spreadsheet_cell(value: Any) -> Any:
    """Prefixes text that a spreadsheet would take for a formula with an apostrophe; other values are unchanged."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
