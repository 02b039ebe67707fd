"""`mmcl eval`: a run's own evaluators again, or one evaluator of any model on any data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mmcl.cli.sources import parse_mapping, parse_source
from mmcl.config import EvaluatorConfig
from mmcl.errors import UserError

Evaluator = Literal["retrieval", "zero_shot", "knn", "linear_probe", "few_label", "classification", "sts", "embedding_map"]


def evaluate(
    model: Positional[str],
    /,
    *,
    evaluator: Evaluator | None = None,
    data: str | None = None,
    data_args: str = "{}",
    bank: str | None = None,
    bank_args: str = "{}",
    args: str = "{}",
    root: str | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Evaluate a model, next to its baselines: mmcl eval runs/clip_emoji

    For other data: mmcl eval runs/clip_emoji --evaluator retrieval --data photos/

    Args:
        model: A run directory, open_clip:ARCH/PRETRAINED, hf:ID, timm:NAME or torchvision:NAME.
        evaluator: One evaluator instead of those that the run was configured with.
        data: What to evaluate on: a path, or the name of a source (`mmcl list sources`).
        data_args: The source's arguments as YAML, e.g. "{fold: test}".
        bank: The labelled data that knn and linear_probe learn from; a path or a name.
        bank_args: Its arguments.
        args: The evaluator's arguments as YAML, e.g. "{ks: [1, 5]}".
        root: Folder with downloaded data sets; default: the environment variable MMCL_DATA_ROOT, else ~/.cache/mmcl.
        out: Write report.html, report.md, metrics.json and the figures into this folder.
        json: Print the metrics as JSON instead of tables.
    """
    if evaluator is None and data is not None:
        raise UserError("--data needs --evaluator: retrieval, zero_shot, knn, linear_probe or embedding_map")
    if evaluator is not None and data is None:
        raise UserError(f"--evaluator {evaluator} needs --data: a path, or a source of `mmcl list sources`")
    from mmcl.engine.evaluation import build_tasks, evaluate_again, evaluate_models
    from mmcl.evaluate import CachedModel
    from mmcl.interop.load import load_model

    loaded = load_model(model)
    if evaluator is None or data is None:
        report = evaluate_again(Path(model), loaded)
    else:
        config = EvaluatorConfig(
            name=evaluator,
            label=data,
            data=parse_source(data, data_args, flag="--data-args"),
            bank=parse_source(bank, bank_args, flag="--bank-args") if bank else None,
            args=parse_mapping("--args", args),
        )
        report = evaluate_models([CachedModel(loaded, "trained")], [config], build_tasks([config], root))
    if out is not None:
        report.write(out)
    print(report.to_json() if json else report.to_text())
    if out is not None and not json:
        print(f"report   {out}/report.html")
