"""Mixtures: exact proportions, in an order that is a pure function of the step, with unchanged samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.mixed_order import MixedOrder, rows_of_a_round
from mmcl.data.derived.label_captions import LabelCaptions
from mmcl.data.derived.mixture import Mixture
from mmcl.data.open import open_source
from mmcl.errors import UserError
from tests.data.test_loader import Toy, batches, rows, texts
from tests.narrow import present

GOLDEN_INDEX = [2, 0, 3, 10, 9, 0, 4, 4, 5, 3, 2, 1, 1, 1, 3, 0, 3, 4, 6, 2, 0, 11, 4, 7, 2, 1]
GOLDEN_EPOCH = [1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 2, 3, 3, 2, 3, 0, 2, 2, 0, 2, 0, 3, 3]
PARTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=4)


def stream(order: MixedOrder, steps: int) -> tuple[np.ndarray, np.ndarray]:
    epoch, index = zip(*(order.rows(step) for step in range(steps)), strict=True)
    return np.concatenate(epoch), np.concatenate(index)


def build(parts: list[tuple[int, int]], batch_size: int = 1, seed: int = 0) -> MixedOrder:
    names = "abcd"[: len(parts)]
    sizes, counts = ({name: part[i] for name, part in zip(names, parts, strict=True)} for i in (0, 1))
    return MixedOrder(sizes, counts, batch_size, seed)


class TestOrder:
    @given(PARTS, st.integers(0, 5))
    def test_every_round_has_the_exact_proportions(self, parts: list[tuple[int, int]], seed: int) -> None:
        order = build(parts, seed=seed)
        _, index = stream(order, 3 * order.size)
        first = np.cumsum([0, *(size for size, _ in parts)])
        part = np.searchsorted(first, index, side="right") - 1
        for number in range(3):
            shown = np.bincount(part[number * order.size : (number + 1) * order.size], minlength=len(parts))
            assert shown.tolist() == [count for _, count in parts]

    @given(PARTS)
    def test_no_sample_comes_again_before_all_others_of_its_part(self, parts: list[tuple[int, int]]) -> None:
        order = build(parts)
        epoch, index = stream(order, 4 * order.size)
        times = Counter(zip(epoch.tolist(), index.tolist(), strict=True))
        assert max(times.values()) == 1, "no draw comes twice"
        for number, (size, count) in enumerate(parts):
            first = sum(size for size, _ in parts[:number])
            shown = np.bincount(index, minlength=first + size)[first : first + size]
            assert shown.sum() == 4 * count
            assert shown.max() - shown.min() <= 1

    @given(PARTS, st.data())
    def test_ranks_one_after_the_other_are_the_global_batch(self, parts: list[tuple[int, int]], data: st.DataObject) -> None:
        size = sum(count for _, count in parts)
        batch_size = data.draw(st.integers(1, size))
        world = data.draw(st.sampled_from([w for w in range(1, batch_size + 1) if batch_size % w == 0]))
        step, order = data.draw(st.integers(0, 10**6)), build(parts, batch_size)
        shares = [build(parts, batch_size).rows(step, rank, world) for rank in range(world)]
        for part in (0, 1):
            assert np.concatenate([share[part] for share in shares]).tolist() == order.rows(step)[part].tolist()

    @given(PARTS, st.integers(0, 40))
    def test_what_was_shown(self, parts: list[tuple[int, int]], step: int) -> None:
        order = build(parts, batch_size=min(3, sum(count for _, count in parts)))
        index = np.concatenate([order.rows(s)[1] for s in range(step)] or [np.empty(0, np.int64)])
        first = np.cumsum([size for size, _ in parts])
        expected = np.bincount(np.searchsorted(first, index, side="right"), minlength=len(parts))
        for before in (0, step // 2, step, 3 * step):
            order.rows_by_part(before)
            assert list(order.rows_by_part(step).values()) == expected.tolist()

    def test_the_first_rows_never_change(self) -> None:
        epoch, index = stream(build([(5, 10), (7, 3)], seed=3), 26)
        assert index.tolist() == GOLDEN_INDEX
        assert epoch.tolist() == GOLDEN_EPOCH

    def test_rows_of_a_round(self) -> None:
        sizes = {"a": 100, "b": 10, "c": 1000}
        assert rows_of_a_round(sizes) == sizes
        assert rows_of_a_round(sizes, epochs={"b": 2.5, "c": 0.1}) == {"a": 100, "b": 25, "c": 100}
        assert rows_of_a_round(sizes, weights={"a": 1, "b": 1, "c": 1}) == {"a": 370, "b": 370, "c": 370}
        assert rows_of_a_round({"a": 4, "b": 6}, weights={"a": 2, "b": 1}) == {"a": 7, "b": 3}
        assert rows_of_a_round({"a": 4, "b": 6}, weights={"a": 1e9, "b": 1}) == {"a": 10, "b": 1}

    def test_impossible_batches(self) -> None:
        with pytest.raises(UserError, match="choose 1 to 13"):
            build([(5, 10), (7, 3)], batch_size=14)


class TestSamples:
    def test_of_all_parts_in_order(self) -> None:
        one, other = Toy(3), Toy(5, captions={2: ("something else",)})
        source = Mixture({"one": one, "other": other})
        expected = [one[i] for i in range(3)] + [other[i] for i in range(5)]
        assert [source[i].captions for i in range(8)] == [sample.captions for sample in expected]
        assert source.caption(5, 0.0) == source.view_text("text", 5, 0.0) == "something else"
        assert source.fingerprint != Mixture({"other": other, "one": one}).fingerprint
        assert source.ids is None
        assert source.labels is None

    def test_classes_of_the_same_name_are_one(self, tmp_path: Path) -> None:
        sources = {}
        for part, names in (("a", ("cat", "dog")), ("b", ("ape", "cat"))):
            (tmp_path / f"{part}.jsonl").write_text("".join(f'{{"image": "{n}.png", "label": "{n}"}}\n' for n in names))
            sources[part] = open_source("table", str(tmp_path / f"{part}.jsonl"))
        source = Mixture({**sources, "none": Toy(1)})
        assert source.class_names == ["cat", "dog", "ape"]
        assert present(source.labels).tolist() == [0, 1, 2, 0, -1]
        assert [source[i].label for i in range(5)] == [0, 1, 2, 0, None]

    def test_ids_of_parts_never_meet_where_they_say_more_than_captions(self) -> None:
        own = np.array([0, 0, 1, 2])
        source = Mixture({"a": Toy(4, ids=own), "b": Toy(4, ids=own), "c": Toy(4, captions={3: ("caption 2",)})})
        ids = present(source.ids)
        a, b, c = ids.reshape(3, 4).tolist()
        assert ids.dtype == np.int64
        assert (ids >= 0).all()
        assert a[0] == a[1] != b[0] == b[1], "two captions of one id"
        assert not {a[0], b[0]} & {*c, a[2], a[3]}
        assert a[2:] == b[2:] == [c[2], a[3]], "an id of one caption alone is that caption"
        assert c[2] == c[3] != a[3]

    def test_a_caption_that_several_ids_share_joins_no_parts(self) -> None:
        shared = dict.fromkeys(range(3), ("the same",))
        source = Mixture({"a": Toy(3, captions=shared, ids=np.array([5, 5, 6])), "b": Toy(3, captions=shared)})
        ids = present(source.ids).tolist()
        assert ids[0] == ids[1]
        assert len({ids[0], ids[2], ids[3]}) == 3, (
            "its own part says that 5 and 6 differ, so the caption does not identify one of them"
        )
        assert len(set(ids[3:])) == 1

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
    def test_ids_within_a_part_stay_what_they_were(self, rows: list[tuple[int, int]]) -> None:
        captions, ids = {n: (f"c{c}",) for n, (_, c) in enumerate(rows)}, np.array([i for i, _ in rows])
        found = present(Mixture({"a": Toy(len(rows), captions=captions, ids=ids), "b": Toy(2)}).ids)[: len(rows)]
        assert ((found[:, None] == found) == (ids[:, None] == ids)).all()

    def test_without_ids_captions_alone_decide(self) -> None:
        again = Mixture({"c": Toy(4), "d": Toy(4), "a": Toy(4, ids=np.arange(4))})
        ids = present(again.ids).tolist()
        assert ids[:4] == ids[4:8] == ids[8:]

    def test_classes_of_several_parts_meet_by_their_sentences(self) -> None:
        parts = {}
        for part, labels in (("a", [0, 1, 0]), ("b", [1, 1])):
            source = Toy(len(labels), labels=labels)
            source.class_names = ["cat", "dog"]
            parts[part] = LabelCaptions(source, ["a {}.", "the {}."])
        ids = present(Mixture(parts).ids).tolist()
        assert ids[0] == ids[2] != ids[1] == ids[3] == ids[4]

    def test_bad_samples_are_replaced_from_their_own_part(self) -> None:
        source = Mixture({"one": Toy(40, bad_images=tuple(range(30))), "other": Toy(40)})
        order = MixedOrder(source.sizes, {"one": 20, "other": 60}, 16, 0)
        made = batches(source, order=order)
        shown = np.concatenate([made[step].index.numpy() for step in range(5)])
        assert (shown < 40).sum() == 20
        assert set(shown[shown < 40].tolist()) <= set(range(30, 40))

    def test_processes_change_nothing(self) -> None:
        source = Mixture({"one": Toy(10, bad_images=(3,)), "other": Toy(7)})

        def part(rank: int, world: int) -> StepBatches:
            return batches(source, order=MixedOrder(source.sizes, {"one": 10, "other": 21}, 12, 5), rank=rank, world=world)

        for step in range(4):
            whole = part(0, 1)[step]
            for world in (2, 3):
                assert [row for rank in range(world) for row in rows(part(rank, world)[step])] == rows(whole)
            for text, index in zip(texts(whole.views["text"]), whole.index.tolist(), strict=True):
                assert text in source[index].captions
