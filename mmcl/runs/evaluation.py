"""Evaluation described by a configuration, at the end of a run or of any model afterwards."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

from mmcl.config import Config, EvaluatorConfig, SourceConfig, read_as
from mmcl.data.source import Source
from mmcl.encoders.adapters import merge_adapters
from mmcl.engine.distributed_model import encode_together
from mmcl.engine.live_evaluation import sources_of
from mmcl.engine.log import read_log
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Report, Task, run_all
from mmcl.evaluate.cache import EmbeddingCache
from mmcl.evaluate.reporting.before_after import before_and_after
from mmcl.evaluate.reporting.figures import loss_curve
from mmcl.interop.model import Model, build_model
from mmcl.preprocess import Preprocess
from mmcl.runs.build import build_method
from mmcl.runs.build_data import build_source, build_training_data
from mmcl.runs.next_steps import after_training


def evaluate_trained(config: Config, trained: Model, tasks: Sequence[Task], *, cache: EmbeddingCache | None = None) -> Report:
    """Run a configuration's evaluators on the trained model and on the model that the run started from; each is a column.

    All processes of a launch call this and share the encoding; the report of all but the first is empty.

    Args:
        config: configuration of the run.
        trained: the trained model.
        tasks: one for each evaluator in `config.evaluate`, see `build_tasks`.
        cache: cache for embeddings, if any.
    """
    # Rebuilt from the seed, because keeping a copy during the run would need memory.
    method = build_method(config).to(trained.device)
    merge_adapters(method.towers)  # for speed; they have not changed anything yet
    names = ("trained", "before" if config.init else "untrained")

    def evaluate(models: Sequence[Model]) -> Report:
        cached = [CachedModel(model, name, cache=cache) for model, name in zip(models, names, strict=True)]
        return evaluate_models(cached, config.evaluate, tasks)

    report = encode_together([trained, build_model(method)], sources_of(tasks), evaluate)
    if report is None:
        return Report()
    ema = config.train.ema
    averaged = () if ema is None else (f"The trained weights are the moving average over the steps (train.ema {ema:g}).",)
    change = before_and_after(report.metrics, {one.label for one in config.evaluate if one.keep}) if config.init else ""
    opening = (change,) if change else ()
    return dataclasses.replace(report, about=_about(config, trained), notes=(*report.notes, *averaged), opening=opening)


def evaluate_models(models: Sequence[CachedModel], evaluators: Sequence[EvaluatorConfig], tasks: Sequence[Task]) -> Report:
    """Run evaluators on models; each model is a column.

    Args:
        models: baselines and figures are computed for the first.
        tasks: one for each evaluator.

    Raises:
        UserError: nothing could be evaluated. Partial failures are listed in the report's `failures` instead.
    """
    report = run_all([(one.name, one.args, task) for one, task in zip(evaluators, tasks, strict=True)], models)
    about = {"model": ", ".join(model.name for model in models), "test data": _labels(evaluators)}
    return dataclasses.replace(report, about={**about, "date": datetime.date.today().isoformat()})


def build_tasks(
    evaluators: Sequence[EvaluatorConfig],
    root: str | None,
    training_data: Source | None = None,
    held_out: Source | None = None,
) -> list[Task]:
    """Build the task of each evaluator. A source that is named several times is opened once and shares one task.

    Args:
        root: folder with downloaded datasets.
        training_data: default training data for k-NN and probes.
        held_out: default data for evaluators that do not name any.

    Raises:
        UserError: the data do not exist.
    """
    opened: dict[str, Source] = {}

    def open_once(source: SourceConfig | None, default: Source | None, where: str) -> Source | None:
        if source is None:
            return default
        if repr(source) not in opened:
            opened[repr(source)] = build_source(source, root, where)
        return opened[repr(source)]

    chosen = []
    # Evaluators of the same data share a task, and therefore the pixels and components of the baselines.
    tasks: dict[tuple[str, int, int], Task] = {}
    pixel_models: dict[Preprocess | None, CachedModel] = {}
    for number, evaluator in enumerate(evaluators):
        source = open_once(evaluator.data, held_out, f"evaluate.{number}.data")
        bank = open_once(evaluator.bank, training_data, f"evaluate.{number}.bank")
        if source is None:
            raise UserError(f"evaluate.{number}: there is no data to evaluate on; name it")
        task = tasks.setdefault(
            (evaluator.label, id(source), id(bank)), Task(evaluator.label, source, bank, pixel_models=pixel_models)
        )
        chosen.append(task)
    return chosen


def evaluate_again(run_dir: Path, trained: Model, *, cache: EmbeddingCache | None = None) -> Report:
    """Run the evaluators of a finished run on its model again.

    Raises:
        UserError: the folder does not contain a run, or its configuration has no evaluators.
    """
    config = read_config(run_dir)
    if not config.evaluate:
        raise UserError(f"{run_dir}/config.yaml names no evaluator; choose one: mmcl eval knn --model {run_dir} --data ...")
    tasks = build_tasks(config.evaluate, config.data.root, *build_training_data(config))
    return evaluate_trained(config, trained, tasks, cache=cache)


def read_config(run_dir: Path) -> Config:
    """Read the configuration of a run. Raises UserError when the folder does not contain one."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run directory (it has no config.yaml)")
    return read_as(Config, path)


def write_report(report: Report, run_dir: Path) -> None:
    """Write `report/` with the loss curve of the run."""
    curve = loss_curve(read_log(run_dir / "metrics.jsonl"), keys=("loss", "temperature", "lr"), title=run_dir.name)
    more = Report(figures={"loss_curve": curve}, next_steps=after_training(report, run_dir), title=run_dir.name)
    (report + more).write(run_dir / "report")


def _about(config: Config, model: Model) -> dict[str, str]:
    """What was trained on what, for the heading of the report."""
    sources = [config.data.train] if config.data.mix is None else list(config.data.mix.values())
    encoders = [str(tower.encoder_name) for tower in model.towers.values()]
    parameters = sum(parameter.numel() for parameter in model.towers.parameters())
    start = {} if config.init is None else {"start": _without_folders(config.init)}
    names = [_without_folders(one.path) if one.name == "auto" and one.path else one.name for one in sources]
    return {
        "method": config.method.name,
        **start,
        "training data": ", ".join(dict.fromkeys(names)),
        "test data": _labels(config.evaluate),
        "model": f"{' + '.join(encoders)}, {parameters / 1e6:.2f} M parameters",
        "date": datetime.date.today().isoformat(),
    }


def _without_folders(place: str) -> str:
    """The name of a local path, "tuned" of "/home/me/runs/tuned", and what is before it, as in "open_clip:local-dir:tuned".

    Names without a folder of this machine stay whole, such as "hf:openai/clip-vit-base-patch32".
    """
    kind, slash, path = place.partition("/")
    return f"{kind}{Path(path).name}" if slash and (not kind or kind.endswith(":")) else place.rstrip("/")


def _labels(evaluators: Sequence[EvaluatorConfig]) -> str:
    return ", ".join(dict.fromkeys(one.label for one in evaluators))


def evaluated_source(run_dir: Path) -> Source:
    """Open the data of a run's first evaluator. Raises UserError if the folder is not a run, or nothing was evaluated."""
    config = read_config(run_dir)
    if not config.evaluate:
        raise UserError(f"{run_dir}/config.yaml names no data that were evaluated on; give a folder with --images")
    if (data := config.evaluate[0].data) is not None:
        return build_source(data, config.data.root, "evaluate.0.data")
    _, held_out = build_training_data(config)
    assert held_out is not None, "the configuration's check lets no evaluator go without data"
    return held_out
