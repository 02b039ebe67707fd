"""The examples in the help of every verb run as they are printed, after the first commands of the README."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmcl.cli.arguments import form_of
from mmcl.cli.data import look
from mmcl.cli.index import keep_up
from tests.cli.flags import FORMS
from tests.documentation.snippets import run_page

FORMS_WITH_EXAMPLES = {**FORMS, "mmcl data": look, "mmcl index": keep_up}
"""Of `mmcl completion`, tests/cli/test_completion.py runs the scripts; `mmcl index calibrate` needs 200 captions, and
`mmcl eval mteb` downloads (tests/interop/test_mteb.py)."""
LAUNCHER = "torchrun --nproc_per_node 2 -m mmcl"
MADE_BEFORE = """mmcl index build photos/ --out photos.mmcl --model runs/clip_emoji
mmcl search runs/clip_emoji "a dog" --images photos/ --save old.mmcl"""
"""What the examples of `mmcl index` and `mmcl dedup` find."""
EMBEDDED_BEFORE = "mmcl embed photos/ --model runs/clip_emoji --out rows/"
"""What those of `mmcl mine` and `mmcl data curate` find."""
OF_AN_INDEX = ("build", "sync", "verify", "optimize", "recall", "calibrate", "versions", "restore", "export", "import")
_OF_RUNS = ("train", "eval", "eval suite", "finetune", "export", "merge", "push", "compare")
LONG = (*(f"mmcl {verb}" for verb in _OF_RUNS), *(f"mmcl index {verb}" for verb in OF_AN_INDEX))
"""What needs several runs or a suite of 1,906 images, and steps of an index, which docs/guides/search.md takes too."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.long] if command in LONG else [])
        for command in FORMS_WITH_EXAMPLES
        if command not in ("mmcl completion", "mmcl index calibrate", "mmcl eval mteb")
    ],
)
def test_the_examples_of_the_help_run(command: str, place: Path, tmp_path: Path) -> None:
    shutil.rmtree(place / "labeled")  # the first commands do not write it
    lines = "\n".join(form_of(FORMS_WITH_EXAMPLES[command]).examples)
    assert lines
    if command.startswith(("mmcl index", "mmcl dedup")):
        lines = f"{MADE_BEFORE}\n{lines}"
    if command in ("mmcl mine", "mmcl data", "mmcl data curate"):
        lines = f"{EMBEDDED_BEFORE}\n{lines}"
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{lines.replace(LAUNCHER, 'mmcl')}\n```\n")
    run_page(page)
