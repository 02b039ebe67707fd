"""What an embedding job does: the plan of its folder, and the encoding of one shard after another.

The bytes of a shard depend on its plan alone. Batches never cross shards, an unreadable image is a black one in its batch and
a row without an embedding in the file, and every process computes with one thread, because sums in several threads round
differently: it is the number of processes that uses the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import threadpoolctl
import torch

from mmcl.config import SourceConfig
from mmcl.data.captions import checked_caption
from mmcl.data.derived.subset import Subset
from mmcl.data.images.image_cache import ReadableImages
from mmcl.data.names import relative
from mmcl.data.sample import Sample
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate.cache import library_versions
from mmcl.evaluate.embedding_file import FileMetadata
from mmcl.evaluate.prompts import class_embeddings
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.interop.truncated import at_dim
from mmcl.runs.build_data import build_source
from mmcl.search.shards.files import Claims, ShardFacts, shard_facts, shard_table, write_shard
from mmcl.search.shards.plan import ShardPlan, settle_plan


@dataclass(frozen=True, kw_only=True)
class EmbeddingJob:
    """An embedding job; every process that takes part has an equal one.

    Attributes:
        data: the source.
        model: name of the model, see `mmcl.load_model`.
        folder: folder of the shards; for several machines, on a file system that all of them see.
        shard_rows: samples of each shard.
        features: the encoder's outputs before the head, of the images alone.
        dim: width of the embeddings, a prefix of the model's; None for all.
        dtype: of the embeddings in the files, "float32" or "float16".
        root: folder with downloaded datasets.
        device: device of this process; None uses the GPU if there is one.
    """

    data: SourceConfig
    model: str
    folder: Path
    shard_rows: int = 4096
    features: bool = False
    dim: int | None = None
    dtype: str = "float32"
    root: str | None = None
    device: str | None = None


class ShardEncoder:
    """Encodes the shards of a job, in this process.

    Args:
        job: the job; its source is opened and its model loaded.

    Attributes:
        plan: what the bytes of the shards depend on.

    Raises:
        UserError: the data or the model cannot be used, or the folder was begun with another plan.
    """

    def __init__(self, job: EmbeddingJob):
        self.folder = job.folder
        self.source: Source = build_source(job.data, job.root, "data")
        self._whole: Model = load_model(job.model, device=job.device)
        self.model = at_dim(self._whole, job.dim)
        self.plan = _plan_of(job, self.source, self._whole, self.model.fingerprint)
        settle_plan(self.folder, self.plan)

    def fill(self, numbers: Iterable[int], on_shard: Callable[[int], None] = lambda number: None) -> None:
        """Writes those of the shards that are not there and that no other process writes.

        Args:
            numbers: of the shards, in the order in which they are tried.
            on_shard: called with the number of each shard that this process has written.

        Raises:
            UserError: a file cannot be written, or an embedding is not finite.
        """
        with one_thread(), Claims(self.folder) as claims:
            for number in numbers:
                if self._is_there(number):
                    continue
                with claims.claim(number) as is_ours:
                    if is_ours and not self._is_there(number):  # another may have written it meanwhile
                        self._write(number)
                        on_shard(number)

    def _is_there(self, number: int) -> bool:
        return shard_facts(self.folder, self.plan, number) is not None

    def _write(self, number: int) -> None:
        table, images = self._classes() if number == self.plan.shards else self._samples(self.plan.samples(number))
        bad = table["embedding"].null_count
        facts = ShardFacts(self.plan.key, number, images, len(table) - images, bad)
        about = FileMetadata(self.plan.model, self.plan.data, self.model.logit_scale, self.model.logit_bias)
        write_shard(self.folder / self.plan.file(number), table, facts, asdict(about))

    def _samples(self, rows: range) -> tuple[pa.Table, int]:
        """The images of a shard, then their captions; and the number of images."""
        images = ReadableImages(Subset(self.source, np.arange(rows.start, rows.stop)), self._whole.preprocess)
        embeddings = [_finite(self._whole.image_features(images)) if self.plan.features else self.model.encode_image(images)]
        samples = [self.source[row] for row in rows]
        reasons = [self._reason(images.unreadable.get(number)) for number in range(len(samples))]
        ids = list(rows) if self.source.ids is None else [int(self.source.ids[row]) for row in rows]
        columns: dict[str, list[Any]] = {
            "row": list(rows),
            "id": list(ids),
            "kind": ["image"] * len(rows),
            "label": [_label(sample, self.source) for sample in samples],
            "name": [_valid(relative(sample.name, self.source.places)) for sample in samples],
        }
        captions = [] if self.plan.features or not self.model.has_text else list(_captions(samples))
        if captions:
            places, texts, problems = zip(*captions, strict=True)
            good = [text for text, problem in zip(texts, problems, strict=True) if problem is None]
            embeddings.append(_spread(self.model.encode_text(good) if good else embeddings[0][:0], problems))
            reasons += map(self._reason, problems)
            for column, values in (
                ("row", [rows[place] for place in places]),
                ("id", [ids[place] for place in places]),
                ("kind", ["text"] * len(texts)),
                ("label", [None] * len(texts)),
                ("name", [_valid(text) for text in texts]),
            ):
                columns[column] += values
        return shard_table(columns, np.concatenate(embeddings), reasons, self.plan.dtype), len(samples)

    def _reason(self, problem: str | None) -> str | None:
        """A reason without the place of the data, which differs between their copies."""
        for place in self.source.places if problem is not None else ():
            problem = problem.replace(place, "")  # type: ignore[union-attr]
        return None if problem is None else _valid(problem)

    def _classes(self) -> tuple[pa.Table, int]:
        names = list(self.source.class_names or ())
        count = len(names)
        columns: dict[str, list[Any]] = {
            "row": [None] * count,
            "id": [None] * count,
            "kind": ["class"] * count,
            "label": names,
            "name": names,
        }
        embeddings = class_embeddings(self.model, names, self.source.templates)
        return shard_table(columns, embeddings, [None] * count, self.plan.dtype), 0


def _plan_of(job: EmbeddingJob, source: Source, model: Model, fingerprint: str) -> ShardPlan:
    if not len(source):
        raise UserError(f"{job.data.path or job.data.name} has no samples; give at least one")
    if not model.has_image:
        raise UserError(f"{job.model} has no image tower, which shards of images need; give a model that has one")
    if job.features and not hasattr(model, "image_features"):
        raise UserError("this model has no features before its embeddings; leave out --features")
    if job.features and job.dim is not None:
        raise UserError("dim is a width of embeddings, and features are what comes before them: leave one out")
    has_classes = model.has_text and not job.features and bool(source.class_names)
    device = getattr(model, "device", None)
    return ShardPlan(
        model=fingerprint,
        data=source.fingerprint,
        rows=len(source),
        shard_rows=job.shard_rows,
        features=job.features,
        dtype=job.dtype,
        classes=len(source.class_names or ()) if has_classes else 0,
        device="onnx" if device is None else torch.device(device).type,
        versions=library_versions() | {"pyarrow": pa.__version__},
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread within the block, so that sums round alike in every process. Images are read in several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _captions(samples: Iterable[Sample]) -> Iterator[tuple[int, str, str | None]]:
    """Each sample's captions: the sample's place, the caption, and why it cannot be used, if so."""
    for place, sample in enumerate(samples):
        for caption in sample.distinct_captions:
            try:
                yield place, checked_caption(caption, sample.name), None
            except UserError as error:
                yield place, str(caption), str(error)


def _spread(embeddings: np.ndarray, problems: Iterable[str | None]) -> np.ndarray:
    """The embeddings at the places without a problem, zeros elsewhere."""
    is_good = np.array([problem is None for problem in problems])
    rows = np.zeros((len(is_good), embeddings.shape[1]), np.float32)
    rows[is_good] = embeddings
    return rows


def _finite(features: np.ndarray) -> np.ndarray:
    if not np.isfinite(features).all():
        raise UserError("the features are not finite; the model's weights are damaged, or its training diverged")
    return features.astype(np.float32)


def _label(sample: Sample, source: Source) -> str | None:
    if sample.label is None or sample.label < 0:
        return None
    return str(sample.label) if source.class_names is None else source.class_names[sample.label]


def _valid(text: str) -> str:
    """Valid Unicode, which parquet needs."""
    return text.encode("utf-8", "backslashreplace").decode()
