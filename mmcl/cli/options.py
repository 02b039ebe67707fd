"""Flags that several verbs share, each with its description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

RARE = "rare"
"""Mark of a flag that the short help only names."""
Device = Annotated[str | None, "cpu, cuda, cuda:1 or mps. Default: the GPU if there is one."]
Json = Annotated[bool, "Print JSON instead of text."]
NoCache = Annotated[bool, "Encode everything again. Neither reads embeddings from the cache ($MMCL_CACHE) nor keeps any there."]
Out = Annotated[
    Path | None, "Write the report into this folder. It holds report.html, report.md, metrics.json, .csv and figures."
]
Root = Annotated[
    str | None, "Folder with downloaded datasets. Default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl."
]
