"""`mmcl config`: printing of a shipped configuration, as a starting point for your own."""

from __future__ import annotations

from mmcl.cli.output import show


def print_config(name: str, /) -> None:
    """Print a shipped configuration, as a start for your own.

    Examples:
        mmcl config clip_emoji > mine.yaml

    Args:
        name: Its name. `mmcl list configs` lists them.
    """
    from mmcl.config.shipped import shipped_config

    show(shipped_config(name).read_text(encoding="utf-8"))
