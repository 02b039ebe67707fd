"""Per-row outcomes of metrics, stored in one safetensors file, for comparing two models on the same queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmcl.errors import UserError
from mmcl.files.untrusted import parse_json

Statistic = Literal["mean", "median", "class_mean", "influence"]


@dataclass(frozen=True, slots=True)
class Influence:
    """How a statistic that is no mean, such as an AUROC, depends on each row; see detection.py.

    Attributes:
        value: the statistic, from 0 to 1.
        row_N: float32 [N], its derivative by the weight of each row.
        draws: effective number of clusters that it was computed from.
    """

    value: float
    row_N: np.ndarray
    draws: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes of all queries of a metric.

    Attributes:
        values: float32 [N], such as 0 or 1 for a miss or a hit, or a rank.
        statistic: how the metric is computed from the values; "class_mean" is the mean over the classes of the class means.
            For "influence" it is not: the values only tell on which rows a model does better.
        labels: int64 [N], the classes for "class_mean"; for "influence", a digest of what was asked about each row.
        names: names of the N queries, such as an image's name or a text; None if unknown.
        clusters: int64 [N], equal for rows that were drawn together, such as the captions of one image; None if there are none.
        within: lower and upper bound of an outcome, possibly infinite; None if unknown.
        influence: of the rows on the statistic, for "influence".
    """

    values: np.ndarray
    statistic: Statistic = "mean"
    labels: np.ndarray | None = None
    names: Sequence[str] | None = None
    clusters: np.ndarray | None = None
    within: tuple[float, float] | None = None
    influence: Influence | None = None

    def __len__(self) -> int:
        return len(self.values)


Key = tuple[str, ...]


def outcomes_file(outcomes_by_key: Mapping[Key, Outcomes]) -> bytes:
    """The content of a file with outcomes by metric key. Names that several metrics share are stored once."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    place: dict[int, str] = {}
    for number, (key, outcomes) in enumerate(outcomes_by_key.items()):
        tensors[f"values.{number}"] = np.ascontiguousarray(outcomes.values, np.float32)
        for kind, numbers in (("labels", outcomes.labels), ("clusters", outcomes.clusters)):
            if numbers is not None:
                tensors[f"{kind}.{number}"] = np.ascontiguousarray(numbers, np.int64)
        if outcomes.names is not None and id(outcomes.names) not in place:
            place[id(outcomes.names)] = f"names.{len(place)}"
            encoded = json.dumps(list(outcomes.names)).encode()
            tensors[place[id(outcomes.names)]] = np.frombuffer(encoded, np.uint8)
        entry: dict[str, Any] = {
            "key": key,
            "statistic": outcomes.statistic,
            "names": place.get(id(outcomes.names)),
            "within": outcomes.within,
        }
        if outcomes.influence is not None:
            tensors[f"influence.{number}"] = np.ascontiguousarray(outcomes.influence.row_N, np.float32)
            entry |= {"value": outcomes.influence.value, "draws": outcomes.influence.draws}
        entries.append(entry)
    return save(tensors, {"rows": json.dumps(entries)})


def read_outcomes(path: Path) -> dict[Key, Outcomes]:
    """Reads a file made by `outcomes_file`; a missing file is empty. Raises UserError if the file is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            entries = parse_json(file.metadata()["rows"], str(path))
        names = {
            name: tuple(parse_json(tensor.tobytes(), str(path)))
            for name, tensor in tensors.items()
            if name.startswith("names.")
        }
        return {
            tuple(entry["key"]): _checked(
                tensors[f"values.{number}"],
                entry["statistic"],
                tensors.get(f"labels.{number}"),
                names.get(entry["names"]),
                tensors.get(f"clusters.{number}"),
                tuple(entry["within"]) if entry.get("within") else None,
                (entry["value"], tensors[f"influence.{number}"], entry["draws"]) if f"influence.{number}" in tensors else None,
            )
            for number, entry in enumerate(entries)
        }
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); evaluate again") from None


def _checked(values: Any, statistic: Any, labels: Any, names: Any, clusters: Any, within: Any, influence: Any) -> Outcomes:
    """Raises TypeError for content that `outcomes_file` would not write."""
    row_N = None if influence is None else influence[1]
    parts = [("labels", labels, np.int64), ("clusters", clusters, np.int64), ("values", values, np.float32)]
    parts.append(("influence", row_N, np.float32))
    wrong = [name for name, part, kind in parts if part is not None and (part.dtype != kind or part.shape != (len(values),))]
    wrong += ["statistic"] if statistic not in get_args(Statistic) or (statistic == "class_mean" and labels is None) else []
    wrong += ["influence"] if (statistic == "influence") != (influence is not None) or not _is_influence(influence) else []
    wrong += (
        ["names"] if names is not None and (len(names) != len(values) or not all(isinstance(n, str) for n in names)) else []
    )
    wrong += ["within"] if within is not None and not _is_range(within) else []
    if wrong:
        raise TypeError(f"its {wrong[0]} are none")
    return Outcomes(values, statistic, labels, names, clusters, within, None if influence is None else Influence(*influence))


def _is_range(within: tuple[Any, ...]) -> bool:
    return len(within) == 2 and all(isinstance(end, int | float) for end in within) and within[0] <= within[1]


def _is_influence(influence: tuple[Any, np.ndarray, Any] | None) -> bool:
    if influence is None:
        return True
    value, row_N, draws = influence
    are_numbers = all(isinstance(number, int | float) and np.isfinite(number) for number in (value, draws))
    return are_numbers and 0 <= value <= 1 and draws > 0 and bool(np.isfinite(row_N).all())
