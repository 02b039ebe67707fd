"""Publishing a model on the Hugging Face hub: a folder that was checked, with a model card, and nothing private in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_token

from mmcl.errors import UserError
from mmcl.evaluate import Report
from mmcl.files.atomic import write_file
from mmcl.files.redaction import has_secret, private_part
from mmcl.files.untrusted import reason
from mmcl.interop.export.exporting import check_target, export
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model
from mmcl.runs.model_card import CardContent, check_license, model_card

CARD = "README.md"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TEXTS = (".json", ".md", ".txt", ".yaml", ".jinja")


def check_repository(name: str) -> None:
    """Raises UserError unless a name is USER/NAME. A URL is refused without being repeated: it may hold a token."""
    if "://" in name or has_secret(name):
        raise UserError(
            "give the repository as USER/NAME, not as a URL; the token is that of `hf auth login`, and no part of a command"
        )
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"{name}: give the repository as USER/NAME")


def check_login() -> None:
    """Raises UserError if there is no token of the hub here."""
    if get_token() is None:
        raise UserError("not logged in to the hub: hf auth login, or set HF_TOKEN; --dry_run writes the folder without it")


def read_report(run: Path) -> Report:
    """Returns the evaluation of a run; an empty one if it has none."""
    folder = run / "report"
    return Report.load(folder) if (folder / "metrics.json").is_file() else Report()


def write_repository(
    folder: Path,
    model: Model,
    *,
    repository: str,
    to: Sequence[str],
    license: str,
    report: Report,
    precision: Precision = "fp32",
) -> None:
    """Writes what is published: the first format at the root, each other one in a folder of its name, and the card.

    Args:
        folder: a new folder.
        model: as from `load_model`.
        repository: "USER/NAME".
        to: formats, see `mmcl.export`.
        license: identifier of the license on the hub.
        report: evaluation of the model.
        precision: type of the weights, in every format that has it; the others keep float32.

    Raises:
        UserError: a format does not fit or differs; or a file holds something private, which is named.
    """
    check_repository(repository)
    check_license(license)
    exports = []
    for number, target in enumerate(to):
        exports.append(export(model, to=target, out=folder / target if number else folder, precision=precision))
    content = CardContent(repository=repository, model=model, license=license, report=report, exports=exports, folder=folder)
    write_file(folder / CARD, model_card(content))
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raises UserError for a text file with a secret, or with a path of this machine."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TEXTS and path.is_file():
            found = private_part(path.read_text(encoding="utf-8"))
            if found is not None:
                raise UserError(f"{path.relative_to(folder)} would publish {found}: remove it from what the model was made of")


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Sends a folder to the hub as one commit. Returns the address of the repository.

    Raises:
        UserError: the hub refuses it or cannot be reached.
    """
    api = HfApi(library_name="mmcl")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Model exported by mmcl")
    except Exception as error:  # of the hub's client and of its transport
        raise UserError(f"{repository} cannot be written on {api.endpoint} ({reason(error)}); see `hf auth whoami`") from None
    return f"{api.endpoint}/{repository}"


def check_formats(to: Sequence[str], precision: Precision) -> None:
    """Raises UserError for formats that are unknown, missing or named twice."""
    if len(set(to)) < len(to) or not to:
        raise UserError(f"--to {' '.join(to)}: give every format once")
    for target in to:
        check_target(target, precision, where="--to")
