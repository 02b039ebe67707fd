"""`mmcl example`: example folders of images, to try the other commands on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmcl.cli.output import say
from mmcl.terminal import counted


def example(folder: Path, /, *, kind: Literal["captions", "classes"] = "captions") -> None:
    """Write a folder of example images to try the other commands on.

    Examples:
        mmcl example photos/
        mmcl example labeled/ --kind classes

    Emoji by a vendor that the default run never trains on, with attribution and license (CC-BY 4.0) in NOTICE.md.

    Args:
        folder: A new or empty folder.
        kind: Images with captions.csv, or a subfolder of images for each class.
    """
    from mmcl.data.example import write_example

    count = write_example(folder, kind)
    say(f"{counted(count, 'image')} with {kind} in {folder}, licensed under CC-BY 4.0 ({folder}/NOTICE.md)")
