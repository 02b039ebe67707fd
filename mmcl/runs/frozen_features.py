"""Features of frozen encoders, computed once and read in every epoch instead of encoding again.

The encoder's inputs must be known, as in LiT (Zhai et al., 2022): images that are not augmented, and captions as they are
listed, one of which may be drawn in each epoch. The features are stored in files in the run directory that are mapped into
memory, so the operating system caches as much as fits, and resumed runs reuse them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.config import Config
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.pieces import Piece
from mmcl.data.captions import checked_caption, token_ids
from mmcl.data.derived.subset import Subset
from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.source import Source
from mmcl.data.stored_rows import StoredRows
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.files.mapped import reserve_array
from mmcl.interop.model import Model
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.progress import progress_bar
from mmcl.runs.stored_inputs import stored_inputs
from mmcl.types import Batch, Features, Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)

_ROWS, _STARTS, _IDS = "rows.npy", "starts.npy", "ids.npy"


def stored_name(kind: str) -> str:
    """Return the name under which a batch has the features of images or captions, before they take the place of the inputs."""
    return f"features/{kind}"


class FeatureBatches:
    """Batches in which the views of frozen encoders hold features instead of inputs, read in pieces like `StepBatches`.

    Args:
        batches: item number s is a process's share of step s, with the features among its stored rows.
        kinds: view -> "image" or "text", for the views of frozen encoders.
    """

    def __init__(self, batches: StepBatches, kinds: Mapping[str, str]):
        self.batches, self.kinds = batches, kinds

    @property
    def pieces(self) -> int:
        """Number of pieces of every step."""
        return self.batches.pieces

    def __getitem__(self, step: int) -> Batch:
        return self.joined(step, (self.piece(step, number) for number in range(self.pieces)))

    def piece(self, step: int, number: int) -> Piece:
        """Reads a piece of a step, with features."""
        piece = self.batches.piece(step, number)
        features = {view: Features(piece.batch.stored[stored_name(kind)]) for view, kind in self.kinds.items()}
        others = {name: rows for name, rows in piece.batch.stored.items() if name not in map(stored_name, self.kinds.values())}
        return replace(piece, batch=replace(piece.batch, views={**piece.batch.views, **features}, stored=others))

    def joined(self, step: int, pieces: Iterable[Piece], *, pin: bool = False) -> Batch:
        """Joins the pieces of a step, see `StepBatches.joined`."""
        return self.batches.joined(step, pieces, pin=pin)


def has_fixed_inputs(kind: str, config: Config, source: Source) -> bool:
    """Return True if the inputs of a tower ("image" or "text") are known before the run: the same images in every epoch, or
    captions as the source lists them."""
    if kind == "image":
        return not config.data.augment and config.data.crop is None and not config.data.views
    return source.draws_as_listed and all(draws_listed(source, index) for index in range(len(source)))


def draws_listed(source: Source, index: int) -> bool:
    """Return True if a sample has captions and draws them as they are. Of a source that does not say so, both ends of the draw
    count."""
    captions = source[index].captions
    return bool(captions) and {source.caption(index, draw) for draw in (0.0, np.nextafter(1, 0))} <= {*captions}


@dataclass(frozen=True, slots=True)
class FrozenFeatures:
    """Features of all images or captions in a folder.

    Attributes:
        rows: the features.
        caption_ids: `token_ids` of the captions, which a run then need not tokenize; None for images.
    """

    rows: StoredRows
    caption_ids: StoredRows | None

    @classmethod
    def of(cls, folder: Path, kind: str) -> FrozenFeatures:
        """Return the features of a kind, "image" or "text", in a folder that exists or is about to be made."""
        starts = folder / _STARTS if kind == "text" else None
        return cls(StoredRows(folder / _ROWS, starts), StoredRows(folder / _IDS, starts) if kind == "text" else None)


def store_features(config: Config, method: Method, source: Source, accelerator: Accelerator) -> dict[str, FrozenFeatures]:
    """Compute missing features, each process its share. All processes call this.

    If a sample cannot be read, its encoder is skipped; training then encodes as usual and replaces such samples. So are texts
    of which the run shows fewer than there are, and those of methods with several views of them.

    Returns:
        Name of each frozen tower with fixed inputs -> features of all images, or of all captions.
    """
    found = {}
    others = stored_inputs(source).keys() | ({"text"} if [*method.views.values()].count("text") > 1 else set())
    for kind, tower in method.towers.items():
        if tower.frozen and kind not in others and has_fixed_inputs(kind, config, source):
            features = _store(kind, tower, config, source, accelerator)  # type: ignore[arg-type]
            if features is not None:
                found[kind] = features
    return found


def _store(kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> FrozenFeatures | None:
    samples = map(source.__getitem__, range(len(source)))
    count_N = np.array([len(sample.distinct_captions) if kind == "text" else 1 for sample in samples], np.int64)
    if count_N.sum() > max(len(source), _shown(config, len(source))):
        return None
    final = Path(config.run_dir or "") / "features" / f"{kind}-{_key(kind, tower, config, source, accelerator)}"
    stage = final.with_name(f".tmp-{final.name}")
    if accelerator.is_main_process and not final.exists():
        _reserve(stage, kind, count_N, tower.encoder.feature_dim)
    accelerator.wait_for_everyone()
    if final.exists():
        return FrozenFeatures.of(final, kind)
    if not stage.exists():
        return None
    failed = 0
    try:
        _fill(stage, kind, tower, config, source, accelerator)
    except UserError as error:
        logger.warning(f"features of the frozen {kind} encoder are not kept between epochs: {error}")
        failed = 1
    failed = int(accelerator.reduce(torch.tensor(failed, device=accelerator.device), "sum"))
    if accelerator.is_main_process:
        if failed:
            shutil.rmtree(stage)
        else:
            stage.rename(final)
    accelerator.wait_for_everyone()
    return None if failed else FrozenFeatures.of(final, kind)


def _shown(config: Config, samples: int) -> float:
    """Return how many captions a run shows."""
    train = config.train
    return train.steps * train.batch_size if train.steps else (train.epochs or 1) * samples


def _reserve(stage: Path, kind: str, count_N: np.ndarray, width: int) -> None:
    """Create the files of a folder, unless there is no room for them.

    Args:
        count_N: number of images or captions of each sample.
        width: of the features.
    """
    total = int(count_N.sum())
    try:
        stage.mkdir(parents=True, exist_ok=True)
        reserve_array(stage / _ROWS, (total, width), "float32")
        if kind == "text":
            np.save(stage / _STARTS, np.cumsum(count_N) - count_N)
            reserve_array(stage / _IDS, (total,), "int64")
    except OSError as error:
        shutil.rmtree(stage, ignore_errors=True)
        logger.warning(f"features are not kept between epochs: {stage.parent} cannot be written ({error.strerror})")


def _key(kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> str:
    """Return a hash of everything that the features depend on; this excludes the head, which is trained."""
    encoder = nn.ModuleDict({kind: Tower(tower.encoder, NoHead(tower.encoder.feature_dim))})
    model = Model(encoder, device=accelerator.device)
    with accelerator.main_process_first():  # The others use what the first has cached.
        data = source.identity
    return digest(model.fingerprint, data, config.train.precision)[:16]


@torch.no_grad()
def _fill(stage: Path, kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> None:
    rank, world = accelerator.process_index, accelerator.num_processes
    features_RF = np.load(stage / _ROWS, mmap_mode="r+")
    id_R = np.load(stage / _IDS, mmap_mode="r+") if kind == "text" else None
    row, stop = (len(features_RF) * part // world for part in (rank, rank + 1))
    size = config.train.micro_batch or config.train.batch_size // world
    inputs = _inputs(kind, tower.encoder, source, range(row, stop), size)
    with accelerator.autocast(), progress_bar(total=stop - row, shown=rank == 0, desc=f"{kind} features") as bar:
        for batch in inputs:
            rows = tower.encoder(batch.to(accelerator.device)).float().cpu().numpy()
            features_RF[row : row + len(rows)] = rows
            if id_R is not None:
                id_R[row : row + len(rows)] = token_ids(batch)  # type: ignore[arg-type]
            row += len(rows)
            bar.update(len(rows))
    features_RF.flush()
    if id_R is not None:
        id_R.flush()


def _inputs(kind: str, encoder: Any, source: Source, rows: range, size: int) -> Iterator[Tensor | Tokens]:
    """Yield the encoder's inputs in training, in the order of the source: some of the images, or of the captions."""
    if kind == "image":
        part = Subset(source, np.arange(rows.start, rows.stop))
        yield from (batch.float().div_(255) for batch in decoded_batches(part, encoder.preprocess, size))
        return
    samples = map(source.__getitem__, range(len(source)))
    captions = ((text, sample.name) for sample in samples for text in sample.distinct_captions)
    chosen = islice(captions, rows.start, rows.stop)
    while batch := [checked_caption(text, name) for text, name in islice(chosen, size)]:
        yield encoder.tokenizer(batch)
