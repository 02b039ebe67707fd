"""Equal texts go through their encoder once, where that changes nothing but rounding."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from mmcl.encoders import TEXT_ENCODERS
from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.engine.log import read_log
from mmcl.engine.repeated_texts import RepeatedTexts, encodes_each_row_by_itself
from mmcl.engine.transfer import views_on
from mmcl.methods.clip import CLIP
from mmcl.runs.run import train
from mmcl.testing.toys import toy_tower
from mmcl.types import Tokens
from tests.encoders.cases import TEXT_MODELS, build_case
from tests.engine.tiny import tiny_config

CPU = torch.device("cpu")
TEXTS = ["a red dog", "a cat", "a red dog", "a red dog", "two birds on a hill", "a cat", "a red dog", "a red dog"]


@given(st.lists(st.sampled_from(["", "a", "b", "a b", "b a", "a b c d e f"]), min_size=1, max_size=40))
def test_every_row_gets_its_text(texts: list[str]) -> None:
    numbers = {"": [0]} | {text: [ord(word) for word in text.split()] for text in texts if text}
    rows = [numbers[text] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [7] * (length - len(row)) for row in rows])  # the padding is not part of a text
    tokens = Tokens(ids, torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])).with_repeats()
    if 10 * len(set(texts)) > 9 * len(texts):
        assert tokens.repeats is None
        assert tokens.distinct() is tokens
        return
    assert tokens.repeats is not None
    once = tokens.distinct()
    assert len(once) == len(set(texts))
    assert once.repeats is None
    assert torch.equal(once.mask[tokens.repeats.text], tokens.mask)
    assert torch.equal(once.ids[tokens.repeats.text], tokens.ids)
    assert tokens[: len(texts) // 2].repeats is None  # other rows, other repeats


def test_padding_tells_no_texts_apart() -> None:
    mask = torch.tensor([[True, False], [True, False]])
    assert len(Tokens(torch.tensor([[3, 8], [3, 9]]), mask).with_repeats().distinct()) == 1
    assert (
        len(Tokens(torch.tensor([[3, 8], [3, 8]]), torch.tensor([[True, False], [True, True]])).with_repeats().distinct()) == 2
    )


def small_tower(**args: float) -> Tower:
    torch.manual_seed(0)
    encoder = TEXT_ENCODERS.build("small_text", {"width": 32, "layers": 2, "heads": 2, **args}, None)
    return Tower(encoder.double(), nn.Linear(encoder.feature_dim, 8).double())


def features_and_gradients(tower: Tower, tokens: Tokens) -> list[Tensor]:
    tower.zero_grad()
    rows = tower(tokens)
    (rows * torch.linspace(-1, 2, rows.numel(), dtype=rows.dtype).view_as(rows)).sum().backward()
    return [rows.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)]


def test_rows_and_gradients_are_the_same() -> None:
    tower = small_tower()
    tokens = tower.encoder.tokenizer(TEXTS)  # type: ignore[operator]
    seen: list[int] = []
    tower.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    expected, found = features_and_gradients(tower, tokens), features_and_gradients(tower, tokens.with_repeats())
    assert seen == [8, 3]
    assert len(found) == len(expected) > 10
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


class Drawing(nn.Module):
    """Adds noise, by a function that no list of modules knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x) if self.training else x


class RareDropPath(nn.Module):
    """Drops a row so rarely that a trial hardly ever sees it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) > 1e-6) if self.training else x


class CentredByTheBatch(nn.Module):
    """Neither draws nor is a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


LAYERS = (nn.Dropout(0.1), nn.BatchNorm1d(32), Drawing(), RareDropPath(), CentredByTheBatch(), nn.LayerNorm(32))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_what_draws_or_mixes_rows_is_found_out_and_left_as_it_was(layer: nn.Module) -> None:
    class Wrapped(TextEncoder):
        def __init__(self, inner: TextEncoder):
            super().__init__()
            self.inner, self.layer, self.tokenizer, self.feature_dim = inner, layer, inner.tokenizer, inner.feature_dim

        def forward(self, tokens: Tokens) -> Tensor:
            rows: Tensor = self.layer(self.inner(tokens))
            return rows

    torch.manual_seed(0)
    encoder = Wrapped(TEXT_ENCODERS.build("small_text", {"width": 32, "layers": 1, "heads": 2}, None))
    tower = Tower(encoder, nn.Identity()).eval()
    before, generator = [buffer.clone() for buffer in encoder.buffers()], torch.get_rng_state()
    assert encodes_each_row_by_itself(tower, CPU) == isinstance(layer, nn.LayerNorm)
    assert not any(module.training for module in tower.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(mine, old) for mine, old in zip(encoder.buffers(), before, strict=True))


@pytest.mark.parametrize(("library", "kind"), TEXT_MODELS)
def test_encoders_of_every_library(library: str, kind: str, tmp_path: Path) -> None:
    """Those that draw are known; of the others, the features of a text are the same in both ways."""
    encoder = build_case(library, kind, "text", tmp_path).encoder
    assert isinstance(encoder, TextEncoder)
    tower = Tower(encoder, nn.Identity()).train()
    draws = any(isinstance(module, nn.Dropout) and module.p for module in encoder.modules())
    assert encodes_each_row_by_itself(tower, CPU) != draws
    tower.eval()
    tokens = encoder.tokenizer(TEXTS)
    expected = tower(tokens).detach()
    torch.testing.assert_close(tower(tokens.with_repeats()), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.fixture
def three_captions(folder: Path) -> Iterator[Path]:
    """The images with the names of three sizes as captions."""
    table = folder / "captions.csv"
    before = table.read_bytes()
    rows = list(csv.reader(before.decode().splitlines()))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([image, f"a {len(image) % 3} square"] for image, _ in rows[1:])])
    yield folder
    table.write_bytes(before)


@pytest.mark.parametrize("flags", [(), ("--train.micro_batch", "5")], ids=["whole", "pieces"])
def test_a_run_learns_the_same_and_is_resumed_to_the_bit(three_captions: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    flags = (*flags, "--train.save_every", "4", "--train.keep_checkpoints", "9")
    with mock.patch.object(Tokens, "with_repeats", lambda self: self):
        train(tiny_config(three_captions, tmp_path / "every row", *flags))
    train(tiny_config(three_captions, tmp_path / "run", *flags))
    losses = [[row["loss"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("run", "every row")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    last = tmp_path / "run/checkpoints/step-0000008"
    whole = load_file(last / "model.safetensors")
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "run/model")
    train(tiny_config(three_captions, tmp_path / "run", *flags, "--resume"))
    again = load_file(last / "model.safetensors")
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())


def test_frozen_blocks_stay_in_evaluation_mode() -> None:
    tower = small_tower(dropout=0.5)
    tower.freeze(1)
    before = {name: module.training for name, module in tower.named_modules()}
    assert not encodes_each_row_by_itself(tower, CPU)
    assert {name: module.training for name, module in tower.named_modules()} == before
    assert set(before.values()) == {True, False}


def test_only_texts_are_marked() -> None:
    text = small_tower()
    text.head.embed_dim = 6  # type: ignore[assignment]
    towers = nn.ModuleDict({"image": toy_tower(), "text": text})
    tokens = text.encoder.tokenizer(TEXTS)  # type: ignore[operator]
    views = views_on("cpu", RepeatedTexts(CLIP(towers), CPU).mark({"image": torch.zeros(8, 3), "text": tokens}))
    assert isinstance(views["text"], Tokens)
    assert len(views["text"].distinct()) == 3
    assert isinstance(views["image"], Tensor)
