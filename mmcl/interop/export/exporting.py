"""`mmcl.export`: writes a model in the format of a library, loads it by that library, and compares the embeddings."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized

from mmcl.encoders.transformers_folder import without_bars
from mmcl.errors import UserError, how_to_install
from mmcl.files.atomic import staged
from mmcl.files.untrusted import reason
from mmcl.interop.export import EXPORTS
from mmcl.interop.export.parity import Parity, measure, read_photos
from mmcl.interop.export.target import BOUNDS, REPOSITORY, ExportTarget, instead
from mmcl.interop.graph_folder import Precision
from mmcl.interop.model import Model

REPORT = "export.json"
_VERSIONS = ("mmcl", "torch", "transformers", "open_clip_torch", "timm", "sentence-transformers", "onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was exported, and how closely it agrees; `export.json` beside the files holds the same.

    Attributes:
        target: the format.
        folder: where it was written.
        precision: type of the weights.
        bound: largest difference that was allowed in an embedding of unit length.
        parity: the differences.
        lost: what the format cannot express, one line each.
        megabytes: size of all files.
        seconds: time of writing, loading and comparing.
        usage: lines of Python that load it from the folder.
        usage_on_hub: the same from a repository of the hub, named `REPOSITORY`; empty if its library takes only a copy of it.
    """

    target: str
    folder: Path
    precision: Precision
    bound: float
    parity: Parity
    lost: Sequence[str]
    megabytes: float
    seconds: float
    usage: str
    usage_on_hub: str


def export(
    model: Model,
    *,
    to: str,
    out: str | Path,
    precision: Precision = "fp32",
    check: str | Path | None = None,
) -> ExportReport:
    """Exports a model, and checks the export with its own library's loader.

    Args:
        model: as from `load_model`.
        to: "own", "transformers", "open_clip", "sentence_transformers", "onnx" or "pt2"; `mmcl list exports` describes them.
        out: a new or empty folder.
        precision: type of the weights: "fp32", or "fp16" or "int8" where the format has it.
        check: folder of images whose embeddings are compared too.

    Returns:
        The report, also in `export.json`.

    Raises:
        UserError: the model does not fit the format, which names what does not and a format that fits; a library is missing;
            the embeddings differ by more than the bound of the precision (1e-4, fp16 5e-3, int8 5e-2); or `out` is not empty.
            Nothing is left behind then.

    Example:
        >>> from mmcl import load_model
        >>> report = export(load_model("runs/clip_emoji"), to="onnx", out="clip_emoji.onnx")
        >>> max(report.parity.tensor.values()) < 1e-5
        True
    """
    out, started = Path(out), time.perf_counter()
    check_out(out)
    check_target(to, precision)
    photos = None if check is None else read_photos(Path(check))
    target: ExportTarget = EXPORTS.build(to, {"precision": precision}, _ready(model))
    with staged(out) as stage:
        stage.mkdir()
        with _quiet(), _library_errors(to, target.model):
            lost = list(target.write(stage))
            parity = measure(target.model, target.load(stage), photos)
        bound = BOUNDS[precision]
        beyond = list(parity.beyond(bound, any_shape=target.own_preprocessing))
        if beyond:
            raise UserError(f"export to {to}: {', '.join(beyond)}, more than {bound:g} from the model; nothing was written")
        size = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        report = ExportReport(
            target=to,
            folder=out,
            precision=precision,
            bound=bound,
            parity=parity,
            lost=lost,
            megabytes=size / 1e6,
            seconds=time.perf_counter() - started,
            usage=target.usage(str(out)),
            usage_on_hub=target.usage(REPOSITORY, on_hub=True) if target.loads_from_hub else "",
        )
        (stage / REPORT).write_text(json.dumps(_content(report, target.model), indent=1, ensure_ascii=False), encoding="utf-8")
    return report


def check_out(out: Path) -> None:
    """Raises UserError unless a folder is new or empty: what is in it would be lost."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give a new folder, or remove it first")


def check_target(to: str, precision: Precision, *, where: str = "") -> None:
    """Raises UserError for a target that does not exist, lacks a library, or does not have the precision.

    Args:
        to, precision: as for `export`.
        where: prefix of the message about an unknown target.
    """
    EXPORTS.check(to, {}, where=where)
    kind: type[ExportTarget] = EXPORTS[to]  # type: ignore[assignment]
    if any(importlib.util.find_spec(module) is None for module in kind.needs):
        raise UserError(f"an export to {to} needs {' and '.join(kind.needs)}: {how_to_install(kind.extra)}")
    if precision not in kind.precisions:
        raise UserError(f"{to} has no precision {precision}, only {' and '.join(kind.precisions)}; onnx has all")


@contextmanager
def _library_errors(to: str, model: Model) -> Iterator[None]:
    """Raises UserError for whatever a library raises of a model that it cannot take."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(
            f"export to {to}: its library cannot take this model ({reason(error)}); try --to {instead(model)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the libraries say of their own work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _ready(model: Model) -> Model:
    """Returns a model on the CPU. Raises UserError for weights that are not final, and for heads without encoders."""
    bare = next((name for name, tower in model.towers.items() if not tower.encoder.encodes), None)  # type: ignore[union-attr]
    if bare is not None:
        raise UserError(
            f"the {bare} tower takes stored rows, and has nothing to export that encodes {bare}s: train with {bare}.encoder "
            "embeddings_of and the model that wrote the rows"
        )
    changed = next((name for name, module in model.towers.named_modules() if is_parametrized(module)), None)
    if changed is not None:
        raise UserError(f"{changed} has adapters or other parametrized weights; merge them into the weights before an export")
    if model.device.type == "cpu":
        return model
    return Model(
        copy.deepcopy(model.towers),
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
        embedding=model.embedding,
        class_names=model.class_names,
        matryoshka_dims=model.matryoshka_dims,
        provenance=model.provenance,
        device=torch.device("cpu"),
    )


def _content(report: ExportReport, model: Model) -> dict[str, Any]:
    """The content of export.json: no path of this machine."""
    kept = {name: value for name, value in asdict(report).items() if name not in ("folder", "usage", "usage_on_hub")}
    towers = {name: tower.encoder_name for name, tower in model.towers.items()}
    return {**kept, "fingerprint": model.fingerprint, "towers": towers, "versions": dict(_versions())}


def _versions() -> Sequence[tuple[str, str]]:
    found = []
    for name in _VERSIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
