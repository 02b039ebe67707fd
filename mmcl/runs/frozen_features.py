"""Features of frozen encoders, computed once and read in every epoch instead of encoding again.

The encoder's inputs must not be random, as in LiT (Zhai et al., 2022). The features are stored in a file in the run directory
that is mapped into memory, so the operating system caches as much as fits, and resumed runs reuse the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmcl.config import Config
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.pieces import Piece
from mmcl.data.captions import checked_caption
from mmcl.data.derived.subset import Subset
from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.source import Source
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.files.mapped import reserve_array
from mmcl.interop.model import Model
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.progress import progress_bar
from mmcl.types import Batch, Features, Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)


class FeatureBatches:
    """Batches in which the views of frozen encoders hold features instead of inputs, read in pieces like `StepBatches`.

    Args:
        batches: item number s is a process's share of step s.
        files: view name -> file written by `store_features`.
    """

    def __init__(self, batches: StepBatches, files: Mapping[str, Path]):
        self.batches, self.files = batches, files

    @property
    def pieces(self) -> int:
        """Number of pieces of every step."""
        return self.batches.pieces

    def __getitem__(self, step: int) -> Batch:
        return self.joined(step, (self.piece(step, number) for number in range(self.pieces)))

    def piece(self, step: int, number: int) -> Piece:
        """Reads a piece of a step, with features."""
        piece = self.batches.piece(step, number)
        # The file is mapped for each piece, so that its contents are not sent to loader processes.
        features = {
            view: Features(torch.from_numpy(np.load(file, mmap_mode="r")[piece.batch.index.numpy()]))
            for view, file in self.files.items()
        }
        return replace(piece, batch=replace(piece.batch, views={**piece.batch.views, **features}))

    def joined(self, step: int, pieces: Iterable[Piece], *, pin: bool = False) -> Batch:
        """Joins the pieces of a step, see `StepBatches.joined`."""
        return self.batches.joined(step, pieces, pin=pin)


def has_fixed_inputs(kind: str, config: Config, source: Source) -> bool:
    """Return True if the inputs of a tower ("image" or "text") are the same in every epoch."""
    if kind == "image":
        return not config.data.augment and config.data.crop is None and not config.data.views
    return all(_has_one_caption(source, index) for index in range(len(source)))


def _has_one_caption(source: Source, index: int) -> bool:
    """Return True if a sample has one caption. A source may draw captions it does not list, so both ends of the draw count."""
    captions = source[index].captions
    return len(captions) == 1 and source.caption(index, 0.0) == source.caption(index, np.nextafter(1, 0)) == captions[0]


def store_features(config: Config, method: Method, source: Source, accelerator: Accelerator) -> dict[str, Path]:
    """Compute missing features, each process its share. All processes call this.

    If a sample cannot be read, its encoder is skipped; training then encodes as usual and replaces such samples.

    Returns:
        Name of each frozen tower with fixed inputs -> file of features, float32 [N, F]; row i belongs to sample i.
    """
    files = {}
    for kind, tower in method.towers.items():
        if tower.frozen and has_fixed_inputs(kind, config, source):
            file = _store(kind, tower, config, source, accelerator)  # type: ignore[arg-type]
            if file is not None:
                files[kind] = file
    return files


def _store(kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> Path | None:
    shape = (len(source), tower.encoder.feature_dim)
    final = Path(config.run_dir or "") / "features" / f"{kind}-{_key(kind, tower, config, source, accelerator)}.npy"
    stage = final.with_name(f".tmp-{final.name}")
    if accelerator.is_main_process and not final.exists():
        _reserve(stage, shape)
    accelerator.wait_for_everyone()
    if final.exists():
        return final
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
            stage.unlink()
        else:
            stage.rename(final)
    accelerator.wait_for_everyone()
    return None if failed else final


def _reserve(stage: Path, shape: tuple[int, int]) -> None:
    """Create the file, unless there is no room for it."""
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
        reserve_array(stage, shape, "float32")
    except OSError as error:
        stage.unlink(missing_ok=True)
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
    row, stop = (len(source) * part // world for part in (rank, rank + 1))
    features_NF = np.load(stage, mmap_mode="r+")
    size = config.train.micro_batch or config.train.batch_size // world
    inputs = _inputs(kind, tower.encoder, Subset(source, np.arange(row, stop)), size)
    with accelerator.autocast(), progress_bar(total=stop - row, shown=rank == 0, desc=f"{kind} features") as bar:
        for batch in inputs:
            rows = tower.encoder(batch.to(accelerator.device)).float().cpu().numpy()
            features_NF[row : row + len(rows)] = rows
            row += len(rows)
            bar.update(len(rows))
    features_NF.flush()


def _inputs(kind: str, encoder: Any, source: Source, size: int) -> Iterator[Tensor | Tokens]:
    """Yield the encoder's inputs in training, in the order of the source."""
    if kind == "image":
        yield from (batch.float().div_(255) for batch in decoded_batches(source, encoder.preprocess, size))
        return
    for start in range(0, len(source), size):
        samples = [source[index] for index in range(start, min(start + size, len(source)))]
        yield encoder.tokenizer([checked_caption(sample.captions[0], sample.name) for sample in samples])
