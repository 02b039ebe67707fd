"""Evaluation of embeddings: functions of arrays, and evaluators that apply them to a model and a data source.

The functions need no model: they take arrays and return a `Report`. `compare` compares two reports on the same data, and
`project` draws a two-dimensional map.
An evaluator is a function `(model: CachedModel, task: Task, *, args) -> Report`. The decorator `needs` states its requirements
on the data; `run` runs several evaluators. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcl.lazy import lazy_names
from mmcl.registry import Registry

if TYPE_CHECKING:
    from mmcl.evaluate.classifier import ZeroShotClassifier as ZeroShotClassifier
    from mmcl.evaluate.evaluators.decisions import decisions as decisions
    from mmcl.evaluate.evaluators.embedding_map import embedding_map as embedding_map
    from mmcl.evaluate.evaluators.few_shot import few_shot as few_shot
    from mmcl.evaluate.evaluators.geometry import geometry as geometry
    from mmcl.evaluate.evaluators.groups import groups as groups
    from mmcl.evaluate.evaluators.knn import knn as knn
    from mmcl.evaluate.evaluators.linear_probe import linear_probe as linear_probe
    from mmcl.evaluate.evaluators.multi_label import zero_shot_multilabel as zero_shot_multilabel
    from mmcl.evaluate.evaluators.pairs import pairs as pairs
    from mmcl.evaluate.evaluators.pairs import winoground as winoground
    from mmcl.evaluate.evaluators.projection import Projection as Projection
    from mmcl.evaluate.evaluators.projection import project as project
    from mmcl.evaluate.evaluators.prompt_pairs import prompt_pairs as prompt_pairs
    from mmcl.evaluate.evaluators.rejection import zero_shot_reject as zero_shot_reject
    from mmcl.evaluate.evaluators.retrieval import retrieval as retrieval
    from mmcl.evaluate.evaluators.retrieval import retrieval_from_scores as retrieval_from_scores
    from mmcl.evaluate.evaluators.robustness import effective_robustness as effective_robustness
    from mmcl.evaluate.evaluators.robustness import robustness as robustness
    from mmcl.evaluate.evaluators.sts import sts as sts
    from mmcl.evaluate.evaluators.zero_shot import zero_shot as zero_shot
    from mmcl.evaluate.head import Head as Head
    from mmcl.evaluate.prompts import class_embeddings as class_embeddings
    from mmcl.evaluate.reporting.compare import Comparison as Comparison
    from mmcl.evaluate.reporting.compare import Difference as Difference
    from mmcl.evaluate.reporting.compare import compare as compare
    from mmcl.evaluate.reporting.metric import Metric as Metric
    from mmcl.evaluate.reporting.metric import Provenance as Provenance
    from mmcl.evaluate.reporting.report import Report as Report
    from mmcl.evaluate.running import check as check
    from mmcl.evaluate.running import run as run
    from mmcl.evaluate.running import run_all as run_all
    from mmcl.evaluate.task import CachedModel as CachedModel
    from mmcl.evaluate.task import Task as Task
    from mmcl.evaluate.task import needs as needs

EVALUATORS = Registry(
    "evaluator",
    {
        "retrieval": "mmcl.evaluate.evaluators.retrieval:evaluate_retrieval",
        "zero_shot": "mmcl.evaluate.evaluators.zero_shot:evaluate_zero_shot",
        "prompt_pairs": "mmcl.evaluate.evaluators.prompt_pairs:evaluate_prompt_pairs",
        "knn": "mmcl.evaluate.evaluators.knn:evaluate_knn",
        "classification": "mmcl.evaluate.evaluators.classification:evaluate_classification",
        "linear_probe": "mmcl.evaluate.evaluators.linear_probe:evaluate_linear_probe",
        "few_label": "mmcl.evaluate.evaluators.few_label:evaluate_few_label",
        "few_shot": "mmcl.evaluate.evaluators.few_shot:evaluate_few_shot",
        "pairs": "mmcl.evaluate.evaluators.pairs:evaluate_pairs",
        "zero_shot_reject": "mmcl.evaluate.evaluators.rejection:evaluate_zero_shot_reject",
        "geometry": "mmcl.evaluate.evaluators.geometry:evaluate_geometry",
        "sts": "mmcl.evaluate.evaluators.sts:evaluate_sts",
        "embedding_map": "mmcl.evaluate.evaluators.embedding_map:evaluate_embedding_map",
    },
)

_HOMES = {
    "CachedModel": "task",
    "Comparison": "reporting.compare",
    "Difference": "reporting.compare",
    "Head": "head",
    "Metric": "reporting.metric",
    "Projection": "evaluators.projection",
    "Provenance": "reporting.metric",
    "Report": "reporting.report",
    "Task": "task",
    "ZeroShotClassifier": "classifier",
    "check": "running",
    "class_embeddings": "prompts",
    "compare": "reporting.compare",
    "decisions": "evaluators.decisions",
    "effective_robustness": "evaluators.robustness",
    "embedding_map": "evaluators.embedding_map",
    "few_shot": "evaluators.few_shot",
    "geometry": "evaluators.geometry",
    "groups": "evaluators.groups",
    "knn": "evaluators.knn",
    "linear_probe": "evaluators.linear_probe",
    "needs": "task",
    "pairs": "evaluators.pairs",
    "project": "evaluators.projection",
    "prompt_pairs": "evaluators.prompt_pairs",
    "retrieval": "evaluators.retrieval",
    "retrieval_from_scores": "evaluators.retrieval",
    "robustness": "evaluators.robustness",
    "run": "running",
    "run_all": "running",
    "sts": "evaluators.sts",
    "winoground": "evaluators.pairs",
    "zero_shot": "evaluators.zero_shot",
    "zero_shot_multilabel": "evaluators.multi_label",
    "zero_shot_reject": "evaluators.rejection",
}

__all__ = ["EVALUATORS", *sorted(_HOMES)]

if not TYPE_CHECKING:  # A type checker would accept any name.
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
