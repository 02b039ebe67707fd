"""The positives within a batch, and texts other than captions."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import torch

from mmcl.data.captions import token_ids
from mmcl.data.sample import Sample
from mmcl.encoders.tokenizers import clip_bpe
from mmcl.errors import UserError
from mmcl.types import Tokens
from tests.data.test_loader import TRIPLET, TWO, Toy, batches, texts


class TestIds:
    def test_equal_captions_are_positives(self) -> None:
        batch = batches(Toy(captions={i: ("a cat" if i % 2 else f"dog {i}",) for i in range(40)}), 40)[0]
        cats = batch.ids[batch.index % 2 == 1]
        assert len(set(cats.tolist())) == 1
        assert len(set(batch.ids.tolist())) == 21
        assert (batch.ids >= 0).all()

    def test_ids_of_the_source_take_precedence(self) -> None:
        ids = np.arange(40) % 7
        batch = batches(Toy(ids=ids))[0]
        assert batch.ids.tolist() == ids[batch.index].tolist()

    def test_all_captions_of_an_image_are_its_positives(self) -> None:
        ids = np.arange(40) // 5
        source = Toy(ids=ids, captions={n: (f"one of {n // 5}", f"two of {n // 5}", f"three of {n // 5}") for n in range(40)})
        batch = batches(source, 40)[0]
        for number in range(8):
            own = batch.ids == number
            assert own.tolist() == (ids[batch.index] == number).tolist()
            assert len({text for text, is_own in zip(texts(batch.views["text"]), own, strict=True) if is_own}) > 1

    def test_without_texts_every_sample_is_its_own_class(self) -> None:
        batch = batches(Toy(ids=np.zeros(40, np.int64)), views=TWO)[0]
        assert torch.equal(batch.ids, batch.index)

    def test_a_sample_that_is_twice_in_a_batch_is_its_own_positive(self) -> None:
        made = batches(Toy(5), 4)
        repeated = 0
        for step in range(20):
            batch = made[step]
            for index in set(batch.index.tolist()):
                own = batch.ids[batch.index == index]
                repeated += len(own) > 1
                assert len(set(own.tolist())) == 1
        assert repeated > 0, "the end of an epoch lies within some batch"

    def test_a_sample_that_is_twice_in_a_batch_joins_all_rows_with_either_caption(self) -> None:
        """At the end of an epoch: sample 0 shows p, then q; samples 1 to 3 show one of these."""
        source = Toy(5, captions={0: ("p", "q"), 1: ("p",), 2: ("q",), 3: ("p",), 4: ("other",)})
        made = batches(source, 4)
        joined = 0
        for step in range(200):
            batch = made[step]
            if {"p", "q"} <= {text for text, i in zip(texts(batch.views["text"]), batch.index.tolist(), strict=True) if i == 0}:
                joined += 1
                assert len(set(batch.ids[batch.index != 4].tolist())) == 1
            halves = [batches(source, 4, rank=rank, world=2)[step].ids for rank in range(2)]
            assert torch.equal(torch.cat(halves), batch.ids), "every process finds the same"
        assert joined > 3

    @pytest.mark.parametrize(
        "captions",
        [
            ("A Photo of a CAT", "a photo  of a\ncat "),
            ("fish &amp; chips", "fish & chips", "fish &amp;amp; chips"),
            ("it’s a cat", "it's a cat"),
            ("caf\u00e9", "cafe\u0301"),
            ("word " * 75 + "one end", "word " * 75 + "and quite another", "word " * 300),
        ],
        ids=["case and space", "entities", "quotes", "accents", "cut"],
    )
    def test_captions_of_equal_tokens_are_positives(self, captions: tuple[str, ...]) -> None:
        source = Toy(captions={i: (captions[i % len(captions)],) if i < 30 else (f"other {i}",) for i in range(40)})
        batch = batches(source, 40, tokenizer=clip_bpe())[0]
        assert len(set(batch.ids[batch.index < 30].tolist())) == 1
        assert len(set(batch.ids.tolist())) == 11

    def test_a_tokenizer_that_sees_case_keeps_it(self) -> None:
        source = Toy(captions={i: ("a Cat" if i % 2 else "a cat",) for i in range(40)})
        batch = batches(source, 40, tokenizer=clip_bpe(clean="whitespace"))[0]
        assert len(set(batch.ids.tolist())) == 2

    def test_an_id_is_a_hash_of_the_tokens_whatever_the_padding(self) -> None:
        rows = [[5, 7, 9], [5, 7], [5, 7, 0], [2**40]]
        expected = [
            int.from_bytes(blake2b(np.array(row, "<i8").tobytes(), digest_size=8).digest(), "little") // 2 for row in rows
        ]
        for length in (3, 8):
            ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
            mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
            assert token_ids(Tokens(ids, mask)).tolist() == expected


class TestFurtherTexts:
    class Triplets(Toy):
        def __getitem__(self, index: int) -> Sample:
            captions, positives, negatives = (
                tuple(f"{field} {index}.{n}" for n in range(3)) for field in ("captions", "positives", "negatives")
            )
            return Sample(f"toy/{index}", None, captions, positives=positives, negatives=negatives)

    def test_one_draw_chooses_caption_positive_and_negative(self) -> None:
        views = [batches(self.Triplets(), views=TRIPLET)[step].views for step in range(8)]
        found = {name: [text for view in views for text in texts(view[name])] for name in TRIPLET}
        assert {text[-1] for text in found["text"]} == {"0", "1", "2"}
        assert [text.replace("captions", "negatives") for text in found["text"]] == found["negative"]
        assert [text.replace("captions", "positives") for text in found["text"]] == found["positive"]

    def test_hard_negatives_bring_the_ids_of_all_texts(self) -> None:
        class Crossed(Toy):
            def __getitem__(self, index: int) -> Sample:
                return Sample(f"toy/{index}", None, captions=(f"c {index}",), positives=("p",), negatives=(f"c {index ^ 1}",))

        batch = batches(Crossed(), views=TRIPLET)[0]
        assert batch.text_ids is not None
        assert torch.equal(batch.text_ids[:, 0], batch.ids)
        assert len(batch.text_ids[:, 1].unique()) == 1
        negative_of = dict(zip(batch.index.tolist(), batch.text_ids[:, 2].tolist(), strict=True))
        for index, text in zip(batch.index.tolist(), batch.ids.tolist(), strict=True):
            assert negative_of.get(index ^ 1, text) == text
        assert batches(self.Triplets(), views={"text": "text"})[0].text_ids is None

    def test_a_view_without_its_texts_is_named(self) -> None:
        with pytest.raises(UserError, match="the data have no negatives, which the view 'negative' needs"):
            batches(views={"text": "text", "negative": "text"})
