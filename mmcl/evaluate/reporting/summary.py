"""A summary of many scores: how often each model is best, how each stands to the baselines, and where one is not better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mmcl.evaluate.reporting.contrasts import Contrast, Place, Score, is_rival, place_name
from mmcl.evaluate.reporting.metric import LABELED_PIXELS
from mmcl.terminal import counted, listed

_NAMED = 5
"""Most datasets that are named."""
_BETTER, _LEVEL, _WORSE = "better than every baseline", "not significantly different from a baseline", "worse than a baseline"
_BEHIND = (_LEVEL, _WORSE)


def summary(scores: Mapping[Place, Sequence[Score]]) -> str:
    """Sentences over all scores, of which there is at least one.

    Example:
        >>> from mmcl.evaluate.reporting.contrasts import scores_of
        >>> from mmcl.evaluate.reporting.metric import Metric
        >>> names = ("pairs", "birds", "pairs_accuracy")
        >>> metrics = [Metric(*names, "trained", 0.9, 0.85, 0.94, 180), Metric(*names, "chance", 0.5, None, None, 180)]
        >>> summary({("pairs", "birds"): scores_of(metrics)})
        '1 score on 1 dataset: the model is better than every baseline in 1.'
    """
    found = [score for own in scores.values() for score in own]
    models = list(dict.fromkeys(model for score in found for model in score.contrasts))
    size = f"{counted(len(found), 'score')} on {counted(len({data for _, data in scores}), 'dataset')}"
    best = Counter(score.best.model for score in found).most_common()
    most = [f"{listed([f'{model} is best in {count}' for model, count in best])}."] if len(models) > 1 else []
    standings = "; ".join(_standings(model, found) for model in models)
    return f"{size}: {' '.join([*most, f'{standings}.', *_exceptions(scores, has_one_model=len(models) == 1)])}"


def _standings(model: str, scores: Sequence[Score]) -> str:
    """How often a model is better than all baselines, and how often it is not."""
    own = [score.contrasts[model] for score in scores if model in score.contrasts]
    counts = Counter(map(_standing, own))
    if any(one.other == LABELED_PIXELS for contrasts in own for one in contrasts):
        counts = Counter({name.replace(_BETTER, f"{_BETTER} that has seen no labels"): n for name, n in counts.items()})
    return f"{'the model' if model == 'trained' else model} is {listed([f'{name} in {n}' for name, n in counts.most_common()])}"


def _standing(contrasts: Sequence[Contrast]) -> str:
    """How a model stands to the baselines of a score."""
    held = [one for one in contrasts if is_rival(one)]
    if not held:
        return "without a baseline"
    if any(one.is_significant and one.gain < 0 for one in held):
        return _WORSE
    if any(one.is_significant is False for one in held):
        return _LEVEL
    return "not tested" if any(one.is_significant is None for one in held) else _BETTER


def _exceptions(scores: Mapping[Place, Sequence[Score]], *, has_one_model: bool) -> list[str]:
    """A sentence on the datasets where a model is worse than a baseline, or not significantly different from it, if any."""
    found = []
    for place, own in scores.items():
        behind = [model for score in own for model, contrasts in score.contrasts.items() if _standing(contrasts) in _BEHIND]
        if behind:
            found.append(place_name(place) + ("" if has_one_model else f" ({listed(list(dict.fromkeys(behind)))})"))
    more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return [f"Not better than a baseline: {'; '.join([*found[:_NAMED], *more])}."] if found else []
