"""Geometry in the log at every logged step, and one warning when rows collapse or the temperature reaches its bound."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmcl.config import ComponentConfig, load_config
from mmcl.core.geometry import effective_rank, feature_std, modality_gap, uniformity
from mmcl.engine.collapse import CollapseMonitor, few_rows, verdicts
from mmcl.engine.collapse import measure as measure_few
from mmcl.engine.log import read_log
from mmcl.methods import METHODS
from mmcl.methods.method import Method
from mmcl.runs.run import train
from mmcl.testing.toys import embed, toy_batch, toy_method
from mmcl.types import Embeddings


def rows(count: int = 64, width: int = 16, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def embeddings(**views: Tensor) -> Embeddings:
    ids = torch.arange(len(next(iter(views.values()))))
    return Embeddings(views, views, ids, ids)


def measure(method: Method, given: Embeddings) -> dict[str, float]:
    return measure_few(method, few_rows(given))


def check(monitor: CollapseMonitor, step: int, method: Method, given: Embeddings) -> dict[str, float | str]:
    scale = method.logit_scale
    return monitor.check(step, method, few_rows(given), None if scale is None else float(scale.detach()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_measured_and_healthy_at_the_start(name: str) -> None:
    method = toy_method(name)
    numbers = measure(method, embed(method, toy_batch(method, 16)))
    assert any(key.startswith("effective_rank") for key in numbers)
    assert all(math.isfinite(number) for number in numbers.values())
    assert verdicts(method, numbers, None) == []


def test_two_towers_are_measured_apart() -> None:
    image, text = rows(seed=0), rows(seed=1)
    numbers = measure(toy_method("clip"), embeddings(image=image, text=text))
    for name, row in (("image", image), ("text", text)):
        assert numbers[f"effective_rank_{name}"] == pytest.approx(float(effective_rank(row)))
        assert numbers[f"feature_std_{name}"] == pytest.approx(float(feature_std(row)))
        assert numbers[f"uniformity_{name}"] == pytest.approx(float(uniformity(row)))
    assert numbers["modality_gap"] == pytest.approx(float(modality_gap(image, text)))


def test_lengths_do_not_matter() -> None:
    plain = measure(toy_method("simclr"), embeddings(a=rows()))
    assert measure(toy_method("simclr"), embeddings(a=3 * rows())) == pytest.approx(plain)
    assert "alignment" not in plain


def test_a_collapse_behind_a_predictor_is_seen() -> None:
    """Its batch norm spreads out again what has become one."""
    method = toy_method("simsiam")
    numbers = measure(method, embeddings(a=rows(), b=rows(), target_a=rows(1).expand(64, -1), target_b=rows(seed=1)))
    assert numbers["feature_std"] == pytest.approx(0, abs=1e-6)
    assert len(verdicts(method, numbers, None)) == 1


def test_a_batch_without_pairs_has_no_numbers() -> None:
    assert measure(toy_method("simclr"), embeddings(a=rows(1), b=rows(1))) == {}


def test_a_collapse_is_reported_once_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    monitor, method = CollapseMonitor(), toy_method("simclr")
    healthy, collapsed = embeddings(a=rows(), b=rows()), embeddings(a=rows(1).expand(64, -1), b=rows())
    for step, batch in enumerate([healthy, collapsed, collapsed, healthy, collapsed], 1):
        assert ("verdict" in check(monitor, step, method, batch)) == (batch is collapsed)
    told = [line for line in caplog.messages if "rows have collapsed" in line]
    assert [line.split(":")[0] for line in told] == ["step 2", "step 5"]


def test_a_temperature_at_its_bound(caplog: pytest.LogCaptureFixture) -> None:
    method = toy_method("clip", dtype=torch.float32)
    batch = embeddings(image=rows(seed=0), text=rows(seed=1))
    assert "verdict" not in check(CollapseMonitor(), 1, method, batch)
    with torch.no_grad():
        method.log_scale.fill_(99)  # type: ignore[operator]
    method.commit(batch, toy_batch(method, 4))
    assert "bound 1 / 100" in str(check(CollapseMonitor(), 1, method, batch)["verdict"])


def test_the_cost_is_bounded_because_at_most_256_rows_are_measured() -> None:
    method, image, text = toy_method("clip"), rows(1000, 16), rows(1000, 16, seed=1)
    assert measure(method, embeddings(image=image, text=text)) == measure(method, embeddings(image=image[::4], text=text[::4]))


def test_a_run_logs_its_geometry_and_warns_of_a_collapse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text(
        "method: {name: simclr}\n"
        "image: {encoder: {name: small_cnn, args: {image_size: 8, channels: 1, feature_dim: 16}}}\n"
        "data: {train: {name: digits}}\n"
        "train: {batch_size: 16, steps: 4, log_every: 2, threads: 1}\n"
    )
    config = load_config(path, ["--run_dir", str(tmp_path / "run")])
    train(config)
    log = read_log(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in log] == [1, 2, 4]
    assert all({"effective_rank", "feature_std", "uniformity", "alignment"} <= row.keys() for row in log)
    assert not any("verdict" in row for row in log)
    assert "collapsed" not in caplog.text

    original = Method.embed
    monkeypatch.setattr(
        Method, "embed", lambda *args, **kw: {k: v * 1e-3 + v.detach()[:1] for k, v in original(*args, **kw).items()}
    )
    train(dataclasses.replace(config, run_dir=str(tmp_path / "collapsed"), method=ComponentConfig(name="byol")))
    assert "collapsed" in read_log(tmp_path / "collapsed" / "metrics.jsonl")[0]["verdict"]
    assert caplog.text.count("rows have collapsed") == 1
