"""`mmcl card`: the model card of a run."""

from __future__ import annotations

from pathlib import Path

from mmcl.cli.output import say
from mmcl.errors import UserError
from mmcl.files.atomic import check_file


def card(model: str, /, *, license: str, out: Path | None = None, name: str | None = None) -> None:
    """Write the model card of a run.

    Examples:
        mmcl card runs/clip_emoji --license cc-by-sa-4.0

    It says what the model is, what it was trained from and on, its results beside those of the baselines, its limits, and
    how it is used and made again. Paths are shortened to names, and secrets left out.

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID.
        license: License of the model. An identifier of the hub, such as apache-2.0; that of its base and its data binds it.
        out: Markdown file. Default: README.md in the run directory.
        name: Heading of the card, or USER/NAME. Default: the name of the run.
    """
    run = Path(model)
    path = out or (run if run.is_dir() else Path()) / "README.md"
    check_file(path, flag="--out", suffixes=(".md",))
    if out is None and path.exists():
        raise UserError(f"{path} exists already: remove it, or give --out")
    from mmcl.files.atomic import write_file
    from mmcl.interop.load import load_model
    from mmcl.runs.model_card import CardContent, check_license, model_card
    from mmcl.runs.publish import read_report

    check_license(license)
    loaded = load_model(model, device="cpu")
    called = name or (run.resolve().name if run.is_dir() else model.rpartition(":")[2].replace("/", "_"))
    content = CardContent(repository=called, model=loaded, license=license, report=read_report(run))
    write_file(path, model_card(content))
    say(f"card     {path}")
