"""Columns of data that only some methods and evaluators read: naming one where nothing reads it is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mmcl.config import Config, EvaluatorConfig, SourceConfig
from mmcl.data.sample import OWN_TEXTS
from mmcl.errors import UserError
from mmcl.evaluate import EVALUATORS

READ_AS = {
    "target_columns": "targets",
    "score_column": "scores",
    **{f"{view}_column": field for view, field in OWN_TEXTS.items()},
}
"""Argument of sources -> what evaluators call it, see `mmcl.evaluate.task.needs`."""


def evaluated_sources(evaluators: Sequence[EvaluatorConfig], where: str = "evaluate") -> dict[str, SourceConfig | None]:
    """Return the data and banks of evaluators, by the setting of their arguments: "evaluate.0.data.args."."""
    return {
        f"{where}.{number}.{name}.args.": source
        for number, evaluator in enumerate(evaluators)
        for name, source in (("data", evaluator.data), ("bank", evaluator.bank))
    }


def check_columns(sources: Mapping[str, SourceConfig | None], evaluators: Sequence[EvaluatorConfig]) -> None:
    """Raise UserError for a column of evaluation data that no evaluator reads.

    Args:
        sources: by what a message puts before the name of the argument, see `evaluated_sources`.
        evaluators: all that run.
    """
    for where, source in sources.items():
        for argument in _given(source):
            if not any(one.data == source and argument in _read_by(one) for one in evaluators):
                raise UserError(
                    f"{where}{argument} is not used: no evaluator of these data reads it; remove it, or choose "
                    f"{_readers(argument)}"
                )


def check_training_columns(config: Config, views: Collection[str]) -> None:
    """Raise UserError for a column of training data that neither the method nor an evaluator of a held-out share reads.

    Args:
        config: the run's configuration.
        views: those of its method.
    """
    parts = config.training_parts
    for argument in dict.fromkeys(argument for source in parts.values() for argument in _given(source)):
        where = next(where for where, source in parts.items() if argument in _given(source))
        if argument.removesuffix("_column") not in views:
            if not is_evaluated(argument, config):
                raise UserError(f"{where}.args.{argument} is not used: {_remedy(argument, config.method.name)}")
            if argument == "target_columns":
                _check_same_targets(parts)


def is_evaluated(argument: str, config: Config) -> bool:
    """Return whether an evaluator reads that column of the share of the training data that is held out."""
    return any(one.data is None and argument in _read_by(one) for one in config.evaluate)


def refuse_columns(source: SourceConfig, where: str) -> None:
    """Raise UserError for a column that a command does not read which neither trains nor evaluates."""
    for argument in _given(source):
        raise UserError(f"{where}: {argument} is not used: only training and evaluators read it; remove it")


def _check_same_targets(parts: Mapping[str, SourceConfig]) -> None:
    named = {where: sorted(map(str, source.args.get("target_columns") or [])) for where, source in parts.items()}
    first = next(where for where, columns in named.items() if columns)
    for where, columns in named.items():
        if columns != named[first]:
            raise UserError(
                f"{where}.args.target_columns {'differ from' if columns else 'is missing, unlike'} those of {first} "
                f"({', '.join(named[first])}): name the same in every part, as their held-out shares are evaluated together"
            )


def _given(source: SourceConfig | None) -> list[str]:
    return [] if source is None else [argument for argument in READ_AS if source.args.get(argument)]


def _read_by(evaluator: EvaluatorConfig) -> set[str]:
    """Return the arguments of sources that name what an evaluator reads: all, for one that does not say what it reads."""
    reads = getattr(EVALUATORS[evaluator.name], "reads", READ_AS.values())
    return {argument for argument, field in READ_AS.items() if field in reads}


def _readers(argument: str) -> str:
    return " or ".join(name for name in EVALUATORS if READ_AS[argument] in getattr(EVALUATORS[name], "reads", ()))


def _remedy(argument: str, method: str) -> str:
    view = argument.removesuffix("_column")
    held_out = f"set data.holdout and evaluate {_readers(argument)} on the share that is held out"
    if view in OWN_TEXTS:
        settings = "see `mmcl list methods --args`"
        return f"with its settings, {method} has no view {view!r}; change them ({settings}), remove it, or {held_out}"
    return f"training does not read it; remove it, or {held_out}"
