"""`mmcl push`: a run on the Hugging Face hub."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mmcl.cli.output import say
from mmcl.cli.reports import show_next
from mmcl.files.atomic import check_folder, staged


def push(
    model: str,
    repository: str,
    /,
    *,
    license: str,
    to: tuple[str, ...] = ("own",),
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    private: bool = False,
    dry_run: bool = False,
    out: Path | None = None,
) -> None:
    """Publish a run on the Hugging Face hub, with a model card.

    Examples:
        mmcl push runs/clip_emoji me/clip --license cc-by-sa-4.0 --dry_run
        mmcl push runs/clip_emoji me/clip --license mit --to pt2 --dry_run --out mine

    Only what `mmcl export` writes and the card are sent, never checkpoints. Paths become names, logins and tokens are removed,
    and nothing is sent while a file still holds one.

    Args:
        model: A run directory, open_clip:ARCH/TAG or hf:ID.
        repository: USER/NAME.
        license: License of the model. An identifier of the hub, such as apache-2.0; that of its base and its data binds it.
        to: Formats. The first at the root, each other one in a folder of its name; see `mmcl list exports`.
        precision: Type of the weights.
        private: Only you can see the repository, if it is new.
        dry_run: Write the folder, and send nothing.
        out: Folder of a dry run. Default: NAME in the current directory.
    """
    from mmcl.interop.export.exporting import check_out
    from mmcl.interop.load import load_model
    from mmcl.runs.model_card import check_license
    from mmcl.runs.publish import CARD, check_formats, check_login, check_repository, read_report, upload, write_repository

    check_repository(repository)
    check_license(license)
    check_formats(to, precision)
    folder = out or Path(repository.rpartition("/")[2])
    if dry_run:
        check_folder(folder, flag="--out")
        check_out(folder)
    else:
        check_login()
    loaded, report = load_model(model, device="cpu"), read_report(Path(model))
    with staged(folder) if dry_run else temporary_folder() as written:
        write_repository(written, loaded, repository=repository, to=to, license=license, report=report, precision=precision)
        if not dry_run:
            say(f"sent     {upload(written, repository, private=private)}")
            return
    say(f"folder   {folder}, card {folder / CARD}")
    formats = [] if to == ("own",) else ["--to", *to]
    show_next([shlex.join(["mmcl", "push", model, repository, "--license", license, *formats])])


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields the path of a folder that does not exist yet, and removes it at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch, "repository")
