"""What the page asks of an index, as JSON values and files. It names images by their ids alone."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mmcl.data.images.decode import measure
from mmcl.data.images.image_cache import decode_sample
from mmcl.data.sample import Sample
from mmcl.errors import UserError
from mmcl.evaluate.prompts import class_embeddings
from mmcl.files.spreadsheet import spreadsheet_cell
from mmcl.preprocess import Preprocess
from mmcl.rng import hash_integers
from mmcl.search.calibration import match_of
from mmcl.search.duplicates import Group, find_duplicates
from mmcl.search.image_facts import to_thumb
from mmcl.search.items import Item
from mmcl.search.question import is_exact, question_of, ranked_rows
from mmcl.search.ranking import allowed
from mmcl.search.store import Store
from mmcl.serve.pictures import BytesCache, encode_shown
from mmcl.serve.text_cache import TextCache
from mmcl.types import EmbeddingModel

Values = dict[str, Any]

MAX_LABELS = 20
_SUGGESTED, _LOOKED_AT, _LONGEST_SUGGESTION = 6, 64, 32
_MOST_FACETS = 50
"""Most common folders, classes and years that are offered as filters."""
_CANDIDATES = 300
"""Images of each label that the sliders order."""
_FEW = 5000
"""Images whose headers are read for their dates, where the index does not have these."""
MAX_PAIRWISE, _GROUPS = 50_000, 30
"""Images of which all pairs are compared for the page, and groups that it shows at a time."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for; empty for the whole collection in its order.

    Attributes:
        texts, negatives: what the images should show, and what they should not.
        images: encoded files, checked.
        like: ids of examples.
        where: filter, see `Index.search`.
        sort: order by date.
        k, offset: which part of the answer.
        min_match: lowest match, of a calibrated index.
    """

    texts: Sequence[str] = ()
    negatives: Sequence[str] = ()
    images: Sequence[bytes] = ()
    like: Sequence[str] = ()
    where: str | None = None
    sort: Literal["taken", "-taken"] | None = None
    k: int = 60
    offset: int = 0
    min_match: float | None = None


class Gallery:
    """An index as the page sees it. Not for several threads at once, but for `thumb` and `image`.

    Args:
        store: rows of the index.
        model: embeds the questions.
        name: what the collection is called at the top of the page.
    """

    def __init__(self, store: Store, model: EmbeddingModel, name: str):
        self.store, self.name = store, name
        self._model = TextCache(model)
        self._preprocess: Preprocess | None = getattr(model, "preprocess", None)
        self._files = BytesCache()
        self._groups: tuple[tuple[float, int], list[Group]] | None = None
        self._facets: tuple[int, Values] | None = None

    def about(self) -> Values:
        """Returns what the page says of the collection and offers."""
        return {
            "name": self.name,
            "rows": len(self.store),
            "model": self.store.model_name or self.store.model[:12],
            "exact": self.store.exact,
            "has_text": self._model.has_text,
            "is_calibrated": self.store.calibration is not None,
            "version": f"{self.store.model[:8]}-{self.store.version}",
            "suggestions": self._suggestions() if self._model.has_text else [],
        }

    def search(self, query: Query) -> Values:
        """Returns a part of the answer to a query: {"rows", "total", "exact", "ms"}.

        Raises:
            UserError: the query cannot be answered; the message is for the user.
        """
        begun = time.perf_counter()
        is_empty = not (query.texts or query.images or query.like)
        if is_empty and query.negatives:
            raise UserError("say what to look for: what it should not show only takes away from that")
        mask = allowed(self.store, query.where)
        rows, exact = (self._in_order(query, mask), True) if is_empty else self._answer(query)
        total = len(self.store) if mask is None else int(mask.sum())
        return {
            "rows": rows,
            "total": total,
            "exact": exact,
            "ms": round(1000 * (time.perf_counter() - begun), 1),
        }

    def item(self, id: str) -> Values:
        """Returns all that is known of an image. Raises UserError for an unknown id."""
        item = self._item(id)
        width, height = item.width, item.height
        if width is None and item.image is not None:
            try:
                width, height = measure(item.image, name=id)
            except UserError:
                width = height = None
        meta = {name: _plain(value) for name, value in item.meta.items()}
        facts = {"width": width, "height": height, "size": item.size, "taken": _plain(item.taken), "label": item.label}
        return {"id": item.id, "name": item.path, "captions": list(item.captions), **facts, "meta": meta}

    def thumb(self, id: str) -> bytes:
        """Returns a small image, JPEG. Raises UserError for an unknown id, and if the image cannot be shown."""

        def make() -> bytes:
            try:
                found = self.store.thumb(self.store.position(id))
            except UserError:
                found = None
            return found or to_thumb(decode_sample(Sample(id, self._item(id).image), self._preprocess))

        self.store.position(id)
        return self._files.get(("thumb", id), lambda: self._shown(id, make))

    def image(self, id: str) -> bytes:
        """Returns an image encoded anew, of at most 2048 pixels a side, JPEG. Raises UserError as `thumb` does."""

        def make() -> bytes:
            return encode_shown(decode_sample(Sample(id, self._item(id).image), self._preprocess))

        self.store.position(id)
        return self._files.get(("image", id), lambda: self._shown(id, make))

    def facets(self) -> Values:
        """Returns what can be filtered by: folders, classes and years with their numbers of images, and the columns."""
        if self._facets is None or self._facets[0] != self.store.version:
            self._facets = self.store.version, self._count_facets()
        return self._facets[1]

    def _count_facets(self) -> Values:
        found = {"folders": self._counted("folder"), "labels": self._counted("label"), "years": []}
        if not hasattr(self.store, "samples") or len(self.store) <= _FEW:
            years = pc.year(self.store.column("taken"))
            found["years"] = sorted(_counts(years), key=lambda one: -one["value"])
        return {**found, "columns": dict(self.store.kinds)}

    def zero_shot(self, labels: Sequence[str], templates: Sequence[str], where: str | None) -> Values:
        """Compares the collection with labels.

        Returns:
            {"labels", "counts", "scale", "rows"}: of each label, how many images are nearest to it; the inverse temperature of
            the model or None; the images that the sliders order, with "scores", their cosine with each label.
        """
        vectors = torch.from_numpy(class_embeddings(self._model, labels, list(templates)))
        score_NL = self.store.images @ vectors.T
        mask = allowed(self.store, where)
        positions = torch.arange(len(score_NL)) if mask is None else mask.nonzero().flatten()
        score_NL = score_NL[positions]
        counts = torch.bincount(score_NL.argmax(dim=1), minlength=len(labels)).tolist() if len(positions) else [0] * len(labels)
        best = score_NL.topk(min(_CANDIDATES, len(score_NL)), dim=0).indices.flatten().unique()
        rows = self._rows(positions[best].tolist())
        for row, scores in zip(rows, score_NL[best].tolist(), strict=True):
            row["scores"] = [round(score, 5) for score in scores]
        return {"labels": list(labels), "counts": counts, "scale": self._model.logit_scale, "rows": rows}

    def duplicates(self, threshold: float, cursor: int) -> Values:
        """Returns groups of images that are nearly the same, the most alike first.

        Args:
            threshold: least cosine of two that are joined.
            cursor: number of the first group.

        Returns:
            {"groups", "total", "images", "next"}: of each group the rows with their cosine to the one to keep, its id, and the
            least cosine of two of them; the numbers of groups and images; the next cursor, or None.

        Raises:
            UserError: there are too many images to compare for a page.
        """
        if len(self.store) > MAX_PAIRWISE:
            images = f"{len(self.store):,} images, more than {MAX_PAIRWISE:,}"
            raise UserError(f"comparing all pairs of {images}, takes minutes: use `mmcl dedup`")
        if self._groups is None or self._groups[0] != (threshold, self.store.version):
            found = sorted(find_duplicates(self.store, threshold=threshold), key=lambda group: -group.lowest)
            self._groups = (threshold, self.store.version), found
        groups = self._groups[1]
        shown = []
        for group in groups[cursor : cursor + _GROUPS]:
            rows = self._rows([self.store.position(id) for id in group.ids])
            for row, score in zip(rows, group.scores, strict=True):
                row["score"] = round(score, 5)
            shown.append({"rows": rows, "keep": group.keep, "lowest": round(group.lowest, 5)})
        after = cursor + _GROUPS
        return {
            "groups": shown,
            "total": len(groups),
            "images": sum(len(group.ids) for group in groups),
            "next": after if after < len(groups) else None,
        }

    def export(self, ids: Sequence[str], kind: Literal["csv", "json"]) -> str:
        """Returns a list of images as a file: rank, id, name and caption. Raises UserError for an unknown id."""
        rows = [
            {"rank": rank, "id": item.id, "name": item.path, "caption": item.captions[0] if item.captions else ""}
            for rank, item in enumerate(self.store.items([self.store.position(id) for id in ids]), 1)
        ]
        if kind == "json":
            return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        file = io.StringIO()
        writer = csv.DictWriter(file, ["rank", "id", "name", "caption"])
        writer.writeheader()
        writer.writerows({name: spreadsheet_cell(value) for name, value in row.items()} for row in rows)
        return file.getvalue()

    def _answer(self, query: Query) -> tuple[list[Values], bool]:
        """The rows, and whether all images were compared."""
        question = question_of(
            list(query.texts),
            image=list(query.images),
            like=list(query.like),
            negative=list(query.negatives),
            where=query.where,
            top_k=query.k,
            offset=query.offset,
            sort=query.sort,
            min_match=query.min_match,
        )
        ranked = ranked_rows(self.store, lambda: self._model, question)
        rows = self._rows([one.position for one in ranked])
        calibration = self.store.calibration
        for row, one in zip(rows, ranked, strict=True):
            row["score"] = round(one.score, 5)
            if calibration is not None:
                row["match"] = round(match_of(one.score, calibration), 3)
        return rows, is_exact(self.store, question)

    def _in_order(self, query: Query, mask: Tensor | None) -> list[Values]:
        """A part of the collection, or of what a filter lets through."""
        positions = np.arange(len(self.store)) if mask is None else mask.nonzero().flatten().numpy()
        if query.sort is not None:
            order: Literal["ascending", "descending"] = "descending" if query.sort == "-taken" else "ascending"
            taken = self.store.column("taken").take(pa.array(positions))
            positions = positions[pc.array_sort_indices(taken, order=order).to_numpy()]  # stable, without a date last
        return self._rows(positions[query.offset : query.offset + query.k].tolist())

    def _rows(self, positions: Sequence[int]) -> list[Values]:
        return [
            {
                "id": item.id,
                "name": item.path,
                "caption": item.captions[0] if item.captions else "",
                "taken": _plain(item.taken),
            }
            for item in self.store.items(positions)
        ]

    def _item(self, id: str) -> Item:
        [item] = self.store.items([self.store.position(id)])
        return item

    def _shown(self, id: str, make: Callable[[], bytes]) -> bytes:
        """Raises UserError with the id, where an error of reading would have the path."""
        try:
            return make()
        except (UserError, OSError):
            raise UserError(f"image {id} cannot be shown: it is gone, or cannot be read") from None

    def _counted(self, name: str) -> list[Values]:
        return _counts(self.store.column(name))

    def _suggestions(self) -> list[str]:
        """Short captions from all over the collection, the same every time."""
        count = len(self.store)
        positions = sorted({int(number) % count for number in hash_integers(np.arange(_LOOKED_AT))}) if count else []
        texts = [item.captions[0] for item in self.store.items(positions) if item.captions]
        return [text for text in dict.fromkeys(texts) if len(text) <= _LONGEST_SUGGESTION][:_SUGGESTED]


def _counts(values: pa.Array) -> list[Values]:
    """The most common values with their numbers, most common first, without nulls."""
    found = [(one["values"], one["counts"]) for one in values.drop_null().value_counts().to_pylist()]
    ranked = sorted(found, key=lambda one: (-one[1], str(one[0])))[:_MOST_FACETS]
    return [{"value": value, "count": count} for value, count in ranked]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
