"""Evaluation by several processes equals that of one: same scores, each item encoded once, failures reach all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from mmcl.data.sample import Sample
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.engine.distributed_model import encode_together
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Task, run
from mmcl.interop.model import Model
from mmcl.testing.patterns import PatternSource
from tests.arithmetic import network_tolerance
from tests.distributed.harness import run_processes
from tests.faults.runs import small_vocabulary

ROWS, BANK = 17, 25
EVALUATORS: list[tuple[str, dict[str, Any]]] = [
    ("retrieval", {"examples": 0}),
    ("knn", {"ks": [1, 5]}),
    ("zero_shot", {}),
    ("prompt_pairs", {}),
]


@pytest.fixture(autouse=True, scope="module")
def _small_vocabulary() -> Iterator[None]:
    """Every process builds the model again and again."""
    with small_vocabulary():
        yield


class Broken(PatternSource):
    """Its last image is none; only the last process meets it."""

    def __getitem__(self, index: int) -> Sample:
        return Sample("row 16", b"not an image") if index == ROWS - 1 else super().__getitem__(index)


def model() -> Model:
    """Small towers with batch norm, the same everywhere."""
    torch.manual_seed(0)
    head: dict[str, Any] = {"head": "linear", "head_args": {"embed_dim": 8}}
    image = {"image_size": 16, "channels": 3, "feature_dim": 16}
    specs = {
        "image": TowerSpec(modality="image", encoder="small_cnn", encoder_args=image, **head),
        "text": TowerSpec(modality="text", encoder="small_text", encoder_args={"width": 8, "layers": 1, "heads": 2}, **head),
    }
    return Model(nn.ModuleDict({name: build_tower(spec) for name, spec in specs.items()}), logit_scale=10.0, device="cpu")


def other() -> Model:
    """The same with another scale and other weights."""
    found = model()
    with torch.no_grad():
        for parameter in found.towers.parameters():
            parameter.add_(0.1)
    return found


def scores(one: Model, task: Task) -> dict[str, tuple[float | None, int]]:
    return {f"{row.evaluator}/{row.metric}": (row.value, row.n) for row in run(EVALUATORS, [CachedModel(one)], [task]).metrics}


def task(source: PatternSource | None = None) -> Task:
    return Task("patterns", source or PatternSource(ROWS, seed=0), PatternSource(BANK, seed=1), baselines=False, figures=False)


@cache
def alone() -> dict[str, tuple[float | None, int]]:
    return scores(model(), task())


def together(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {"encoded": {"encode_image": [], "encode_text": []}}
    for name, sizes in found["encoded"].items():
        original = getattr(Model, name)

        def counting(self: Model, items: Any, original: Any = original, sizes: list[int] = sizes, **options: Any) -> Any:
            sizes.append(len(items))
            return original(self, items, **options)

        setattr(Model, name, counting)
    data = task()
    assert data.bank is not None
    sources = [data.source, data.bank]
    found["scores"] = encode_together([model()], sources, lambda shared: scores(shared[0], data))
    found["rows"] = encode_together([other(), model()], sources, lambda shared: shared[1].encode_image(data.source).tolist())
    broken = task(Broken(ROWS, seed=0))
    work: dict[str, Callable[[Sequence[Model]], Any]] = {
        "image": lambda shared: scores(shared[0], broken),
        "evaluator": lambda shared: run([("knn", {"ks": [0]})], [CachedModel(shared[0])], [data]),
    }
    for name, failing in work.items():
        with pytest.raises(UserError) as error:
            encode_together([model()], [broken.source], failing)
        found[name] = str(error.value)
    return found


@cache
def all_ranks(world: int) -> list[dict[str, Any]]:
    return run_processes(world, together)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_scores_are_those_of_one_process(world: int) -> None:
    first, *others = all_ranks(world)
    assert all(found["scores"] is found["rows"] is None for found in others)
    for found in [first]:
        assert found["scores"].keys() == alone().keys()
        for name, (value, count) in alone().items():
            assert found["scores"][name] == (pytest.approx(value, abs=1e-6), count)
        alone_ND = torch.from_numpy(model().encode_image(task().source))
        torch.testing.assert_close(torch.tensor(found["rows"]), alone_ND, rtol=0, atol=network_tolerance(model().towers))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_item_is_encoded_once(world: int) -> None:
    """Shares may be uneven; none is filled up."""
    with mock.patch.object(Model, "encode_text", autospec=True, side_effect=Model.encode_text) as encode:
        scores(model(), task())
    texts = [len(call.args[1]) for call in encode.call_args_list]
    sizes = [found["encoded"] for found in all_ranks(world)]
    for request, whole in enumerate([ROWS, BANK, ROWS]):
        shares = [own["encode_image"][request] for own in sizes]
        assert sum(shares) == whole
        assert max(shares) - min(shares) <= 1
    for request, whole in enumerate(texts):
        assert sum(own["encode_text"][request] for own in sizes) == whole


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_failure_is_the_same_error_in_all_processes(world: int) -> None:
    for found in all_ranks(world):
        assert "row 16" in found["image"]
        assert "ks must be a list of one or more integers of at least 1" in found["evaluator"]
