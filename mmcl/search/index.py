"""A search index of images and their captions, in memory or on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mmcl.data.sample import ImageLike, Sample
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder
from mmcl.search import lance_table, maintenance, saved
from mmcl.search.building import at_dim, check_stored, embedded, loaded_model, model_of, opened_or_created
from mmcl.search.calibration import Calibration, fit
from mmcl.search.collection import Given, open_collection
from mmcl.search.content import Encoder
from mmcl.search.duplicates import THRESHOLD, Group, Keep, Level, find_duplicates, overlap
from mmcl.search.hits import Hits
from mmcl.search.items import Item
from mmcl.search.lance_store import LanceStore
from mmcl.search.lance_table import Dtype
from mmcl.search.memory_store import MemoryStore
from mmcl.search.narrow import Narrow
from mmcl.search.opening import Mode, open_store
from mmcl.search.query import Weights
from mmcl.search.question import Combine, answer, question_of
from mmcl.search.ranking import Sort
from mmcl.search.shards.vectors import shard_vectors
from mmcl.search.store import Store, Target
from mmcl.search.sync import sync
from mmcl.search.upkeep import Upkeep
from mmcl.terminal import counted
from mmcl.types import BadSample, EmbeddingModel

Several: TypeAlias = "ImageLike | Sequence[ImageLike]"


class Index(Upkeep):
    """A search index of images and their captions. Created by `build` or `open`.

    Args:
        store: the rows.
        model: embeds the queries, or its name for `mmcl.load_model`; it must be the model that embedded the rows. None takes
            the model that the index names, when it is first needed.

    Example:
        >>> from PIL import Image
        >>> from mmcl import load_model
        >>> for level in (0, 255):
        ...     Image.new("L", (32, 32), level).save(f"{level}.png")
        >>> index = Index.build(["0.png", "255.png"], load_model("runs/clip_emoji"))
        >>> [hit.name for hit in index.search(image="255.png", top_k=1)]
        ['255.png']
    """

    def __init__(self, store: Store, model: EmbeddingModel | str | None = None, *, device: str | None = None):
        self.store = store
        self._model, self._device = model, device

    def __len__(self) -> int:
        """Number of images that can be found."""
        return len(self.store)

    @property
    def model(self) -> EmbeddingModel:
        """The model, loaded on first use.

        Raises:
            UserError: the index does not name its model, or the model is another one by now.
        """
        if self._model is None or isinstance(self._model, str):
            name = self._model or self.store.model_name
            if not name:
                raise UserError("the index does not name its model; give the model that it was built with")
            loaded, _ = loaded_model(name, device=self._device)
            self._model = model_of(name, self.store.model, self.store.dim, loaded)
        return self._model

    @property
    def bad(self) -> tuple[BadSample, ...]:
        """Images that cannot be read, and unusable captions."""
        return tuple(self.store.bad())

    @property
    def samples(self) -> list[Sample]:
        """The images that can be found, with their captions."""
        if isinstance(self.store, MemoryStore):
            return self.store.samples
        return [Sample(item.name, item.image, item.captions) for item in self.store.items(range(len(self)))]

    @property
    def image_emb(self) -> np.ndarray:
        """Vectors of the images, float32 [N, D], unit length."""
        return self.store.images.numpy()

    @property
    def text_emb(self) -> np.ndarray:
        """Vectors of the captions, float32 [T, D], unit length, in the order of the images."""
        return self.store.texts.vectors.numpy()

    @classmethod
    def build(
        cls,
        collection: Given,
        model: EmbeddingModel | str,
        *,
        out: str | Path | None = None,
        model_name: str = "",
        columns: str | Path | None = None,
        dim: int | None = None,
        dtype: Dtype = "float32",
        narrow: Narrow | None = None,
        replace: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Index:
        """Embeds a collection, and its captions if it has any and the model has a text tower.

        Args:
            collection: a folder or table of images, a list of image files, or a data source.
            model: embeds the images, or its name.
            out: a folder to write the index to, batch by batch: a killed build goes on where it was when it is started again.
                It needs the extra `index`; without it, the index is written at the end, and cannot `sync`. None keeps it in
                memory.
            model_name: what loads the model when the index is opened without it; by default as it was given or loaded.
            columns: a table of your own columns to filter and sort by; its column `image` names images relative to the folder.
            dim: width of the vectors and queries: the first columns of the model's, scaled to unit length; None for all.
            dtype: of the vectors on disk; float16 halves them, and changes some scores by 1e-3; "none" keeps only narrow rows.
            narrow: what is compared with a query, from memory, in place of the vectors: "int8", a byte a number, or "binary",
                a bit. The vectors of the best are then read from the disk and compared; see `rescore` of `search`.
            replace: build anew where `out` is an index of another model or other data.
            batch_size: images per batch; by default the model chooses.
            progress: whether to show a progress bar.

        Returns:
            The index. Images that cannot be read are left out and listed in `bad`.

        Raises:
            UserError: the collection is empty, none of its images can be read, the model has no such `dim`, `out` cannot be
                written, or `dtype` or `narrow` is given for an index that is not on disk.
        """
        on_disk = out is not None and lance_table.is_available()
        check_stored(dtype, narrow, on_disk=on_disk)
        if out is not None and "://" not in str(out):
            check_folder(Path(out), flag="out")
            cls.check_place(out)
        found = open_collection(collection, columns=columns)
        if not len(found):
            raise UserError(f"{found.name} is empty; give it at least one image")
        whole, name = loaded_model(model)
        loaded, name = at_dim(whole, dim), model_name or name
        if not on_disk:
            index = cls(embedded(found, loaded, name, batch_size, progress), loaded)
            if out is not None:
                index.save(out)
            return index
        table = opened_or_created(str(out), found, loaded, name, columns, dtype, narrow, replace=replace)
        index = cls(LanceStore(table), loaded)
        with table.locked():
            sync(table, found, Encoder(loaded, batch_size=batch_size), progress=progress)
        index._forget()
        if not len(index):
            first = index.bad[0].reason
            raise UserError(f"{found.name}: none of {counted(len(found), 'image')} can be read; the first: {first}")
        return index

    @classmethod
    def open(
        cls,
        directory: str | Path,
        model: EmbeddingModel | str | None = None,
        mode: Mode = "r",
        *,
        device: str | None = None,
    ) -> Index:
        """Opens an index on disk.

        Args:
            directory: its folder, or the URL of one in an object store, such as s3://bucket/photos.mmcl.
            model: the model that it was built with, or its name; None takes the one that the index names, when it is first
                needed. Of an index with a `dim`, either the whole model or its `TruncatedModel`.
            device: device of a model that is loaded by name; see `mmcl.load_model`.
            mode: "r" to search it; "w" to change it too, which only one process can at a time.

        Raises:
            UserError: there is no index, it is damaged, of a newer format or of another model, or another process writes it.
        """
        store, given = open_store(str(directory), model, mode)
        return cls(store, given, device=device)

    @classmethod
    def import_old(
        cls, old: str | Path, out: str | Path, *, model_name: str = "", dtype: Dtype = "float32", narrow: Narrow | None = None
    ) -> Index:
        """Writes an index of index.json as one on disk. Nothing is encoded: images must not have changed since it was made.

        Args:
            old: folder of the index.
            out: folder of the new one.
            model_name: what loads its model, where the old index does not name it.
            dtype, narrow: as for `build`.

        Raises:
            UserError: there is no such index, it is damaged, or `out` cannot be written.
        """
        store = maintenance.load_old(str(old))
        given = maintenance.source_of(store), maintenance.KnownVectors(store)
        return cls(cls.build(*given, out=out, model_name=model_name or store.model_name, dtype=dtype, narrow=narrow).store)

    @classmethod
    def from_shards(
        cls,
        shards: str | Path,
        data: Given,
        *,
        out: str | Path | None = None,
        model_name: str = "",
        dim: int | None = None,
        dtype: Dtype = "float32",
        narrow: Narrow | None = None,
    ) -> Index:
        """Builds an index from shards of the data, see `shard_vectors`; all other arguments are as for `build`."""
        source, vectors = shard_vectors(Path(shards), data)
        made = cls.build(source, vectors, out=out, model_name=model_name, dim=dim, dtype=dtype, narrow=narrow)
        return cls(made.store, model_name or None)

    @classmethod
    def load(cls, directory: str | Path, model: EmbeddingModel | str) -> Index:
        """Opens an index for searching, with the model that it was built with; see `open`."""
        return cls.open(directory, model)

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Several | None = None,
        like: str | Sequence[str] | None = None,
        negative: Several | None = None,
        weights: Weights | None = None,
        where: str | None = None,
        top_k: int = 20,
        offset: int = 0,
        min_score: float | None = None,
        min_match: float | None = None,
        sort: Sort | None = None,
        target: Target = "images",
        hybrid: bool = False,
        combine: Combine = "mean",
        exact: bool = False,
        rescore: int | None = None,
    ) -> Hits:
        """Finds the nearest neighbors of texts, images and examples together.

        The query is the sum of all parts, each a unit vector with its weight, less the negatives; see `mmcl.search.query`.

        Args:
            text: a text, or several.
            image: an image, or several, which share the weight of one; a string is a path.
            like: ids of images in the index, used as images are.
            negative: what is not wanted: texts, and images as anything but a string. Half the weight of a text: more soon
                harms.
            weights: weight of "text", "image", "like" and "negative": one number for all of a part, or one for each.
            where: a filter by columns, such as 'taken >= 2020-01-01 and folder under "trip"'; see `mmcl.search.where`.
            top_k: maximum number of hits; with a filter, of those that it lets through.
            offset: number of hits to leave out at the start.
            min_score, min_match: lowest score or match of a hit.
            sort: "taken" or, newest first, "-taken": all hits at most 0.1 below the best score, by date; those without one
                last.
            target: what to find: "images", or "texts", the captions in the collection.
            hybrid: fuse the ranking with that of a full-text search in the captions, by reciprocal ranks; an index on disk
                only.
            combine: of several images, "mean" finds what is near all, "any" what is near one of them.
            exact: compare all vectors although rows are narrow or there is an approximate index; see `build_ann`.
            rescore: times as many images as are wanted that narrow rows find, and whose vectors are compared; by default 10.

        Returns:
            Hits, best first; equal scores in the order of the collection.

        Raises:
            UserError: nothing to search for is given, the parts cancel out, the filter is wrong, the model has no text tower
                for a text, an image cannot be read, or the index has no texts to find.
        """
        question = question_of(
            text,
            **{"image": image, "like": like, "negative": negative, "weights": weights, "where": where},
            **{"top_k": top_k, "offset": offset, "min_score": min_score, "min_match": min_match, "sort": sort},
            **{"target": target, "hybrid": hybrid, "combine": combine, "exact": exact, "rescore": rescore},
        )
        hits = answer(self.store, lambda: self.model, question)
        hits.preprocess = getattr(self._model, "preprocess", None)  # None of a name: the model was not needed
        return hits

    def similar(self, id: str, top_k: int = 20, *, where: str | None = None) -> Hits:
        """Finds the nearest neighbors of an image in the index, without itself; no model is needed.

        Args:
            id: of the image.
            top_k: maximum number of hits.
            where: a filter; see `search`.

        Raises:
            UserError: there is no such image, or the filter is wrong.
        """
        hits = self.search(like=id, where=where, top_k=top_k + 1)
        hits[:] = [hit for hit in hits if hit.id != id][:top_k]
        return hits

    def item(self, id: str) -> Item:
        """Returns all that is known of an image. Raises UserError for an id that there is not."""
        return self.store.items([self.store.position(id)])[0]

    def thumb(self, id: str) -> bytes | None:
        """Returns an image at no more than 256 pixels a side, as JPEG; None without one. Raises UserError as `item` does."""
        return self.store.thumb(self.store.position(id))

    def duplicates(
        self,
        threshold: float = THRESHOLD,
        *,
        where: str | None = None,
        level: Level = "near",
        keep: Keep = "largest",
        complete: bool = False,
    ) -> list[Group]:
        """Finds groups of equal and nearly equal images. All pairs are compared, a block at a time.

        Args:
            threshold: least cosine of two images that are duplicates.
            where: look only among these; see `search`.
            level: "near" joins all pairs that reach the threshold, directly or by a chain; "exact" joins files with equal
                bytes.
            keep: which one of a group comes first: "largest", then the oldest; "oldest", then the largest; or the "first".
            complete: split groups so that any two of their images reach the threshold.

        Raises:
            UserError: the threshold is not a cosine, or the filter is wrong.
        """
        return find_duplicates(self.store, threshold=threshold, where=where, level=level, keep=keep, complete=complete)

    def overlap(self, other: Index, threshold: float = THRESHOLD) -> list[tuple[str, str, float]]:
        """Finds images that another index has too, as training data may have images of the test data.

        Args:
            other: the other index, of the same model.
            threshold: least cosine of two images that are the same.

        Returns:
            Id here, id of the nearest image there, and their cosine, in the order of this index.

        Raises:
            UserError: the indexes are of two models, or the threshold is not a cosine.
        """
        return overlap(self.store, other.store, threshold)

    def calibrate(self) -> Calibration:
        """Fits `Hit.match` to the captions of the collection; see `mmcl.search.calibration`. An index on disk keeps the fit.

        Raises:
            UserError: there are fewer than 200 different captions, or their scores do not tell matches from others.
        """
        found = fit(self.store)
        self.store.set_calibration(dataclasses.asdict(found))
        return found

    @staticmethod
    def is_saved(directory: str | Path) -> bool:
        """True if the folder holds an index, of either format."""
        return saved.is_saved(directory) or lance_table.exists(str(directory))

    @classmethod
    def check_place(cls, directory: str | Path) -> None:
        """Raises UserError if the folder holds anything but a search index, such as a run or images."""
        folder = Path(directory)
        others = folder.is_dir() and not cls.is_saved(folder) and sorted(one for one in folder.iterdir() if not _is_ours(one))
        if others:
            raise UserError(f"{directory}: holds {others[0].name}, and no index of mmcl; give a new folder")

    def save(self, directory: str | Path) -> None:
        """Writes an index in memory as index.json and one safetensors file; for one that keeps up, `build` it with `out`.

        A crash at any moment leaves either the old index or the new one. Names are stored unchanged, so relative paths stay
        relative to the working directory.

        Raises:
            UserError: the folder holds anything but a search index, or this one is on disk already.
        """
        self.check_place(directory)
        if not isinstance(self.store, MemoryStore):
            raise UserError("the index is on disk already; copy its folder, or `export` it")
        if lance_table.exists(str(directory)):
            raise UserError(f"{directory}: holds an index on disk; give another folder")
        saved.save(self.store, Path(directory))


def _is_ours(path: Path) -> bool:
    return path.name in (lance_table.LOCK, f"{lance_table.ABOUT}.lance")
