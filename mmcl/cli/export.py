"""`mmcl export`: a model in the format of another library, checked by that library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmcl.cli.options import Json
from mmcl.cli.output import say, show
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder

if TYPE_CHECKING:
    from mmcl.interop.export.exporting import ExportReport


def export(
    model: str,
    /,
    *,
    to: str,
    out: Path,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    check: Path | None = None,
    json: Json = False,
) -> None:
    """Export a model for another library, and check it there.

    Examples:
        mmcl export runs/clip_emoji --to sentence_transformers --out out
        mmcl export runs/clip_emoji --to onnx --out graphs --check photos/

    The library itself loads what was written. Embeddings of the same pixels, tokens, images and texts are compared, and an
    export that differs by more than 1e-4 (fp16: 5e-3, int8: 5e-2) is not kept. export.json has the differences.

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        to: The format, such as onnx or transformers. `mmcl list exports` describes them.
        out: A new folder.
        precision: Type of the weights. Not every format has all.
        check: Compare the embeddings of the images in this folder too.
        json: Print JSON instead of text. It is what export.json holds.
    """
    check_folder(out, flag="--out")
    if check is not None and not check.is_dir():
        raise UserError(f"--check {check}: no such folder; give one with images")
    from mmcl.interop.export.exporting import REPORT, check_out, check_target
    from mmcl.interop.export.exporting import export as write_export
    from mmcl.interop.load import load_model

    check_target(to, precision, where="--to")
    check_out(out)
    report = write_export(load_model(model, device="cpu"), to=to, out=out, precision=precision, check=check)
    if json:
        show((out / REPORT).read_text(encoding="utf-8"))
    else:
        _print(model, report)


def _print(model: str, report: ExportReport) -> None:
    size = f"{report.precision}, {report.megabytes:.1f} MB, {report.seconds:.0f} s"
    say(f"{model} for {report.target} in {report.folder} ({size})")
    say(f"  same inputs: embeddings differ by {_in_words(report.parity.tensor)}")
    say(f"  end to end: {_in_words(report.parity.end_to_end)}")
    for line in report.lost:
        say(f"note: {line}", error=True)
    show("\n".join(f"  {line}" for line in report.usage.splitlines()))


def _in_words(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.1g} ({name})" for name, value in differences.items())
