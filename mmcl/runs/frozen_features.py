"""Features of frozen encoders, computed once: training reads it in every epoch instead of encoding again.

This takes an encoder with nothing random in front of it, as in LiT (Zhai et al., 2022). The features are a file in the run
directory, mapped into memory: the system keeps in memory what fits, and a resumed run finds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from mmcl.config import Config
from mmcl.data.captions import checked_caption
from mmcl.data.derived.subset import Subset
from mmcl.data.images.image_cache import decoded_batches
from mmcl.data.source import Source
from mmcl.encoders.heads import NoHead
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.files.digest import digest
from mmcl.interop.model import Model
from mmcl.logging import get_logger
from mmcl.methods.method import Method
from mmcl.types import Batch, Features, Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)


class FeatureBatches(Dataset[Batch]):
    """Batches in which the inputs of frozen encoders are replaced, or supplied, by their features.

    Args:
        batches: item number s is a process's share of step s.
        files: view name -> file of `store_features`.
    """

    def __init__(self, batches: Dataset[Batch], files: Mapping[str, Path]):
        self.batches, self.files = batches, files

    def __getitem__(self, step: int) -> Batch:
        batch = self.batches[step]
        # Mapped anew for each batch: loader processes must not be sent the whole of it.
        features = {
            view: Features(torch.from_numpy(np.load(file, mmap_mode="r")[batch.index.numpy()]))
            for view, file in self.files.items()
        }
        return replace(batch, views={**batch.views, **features})


def has_fixed_inputs(kind: str, config: Config, source: Source) -> bool:
    """True if the inputs of a tower ("image" or "text") are the same in every epoch."""
    if kind == "image":
        return not config.data.augment and config.data.crop is None and not config.data.views
    return all(_has_one_caption(source, index) for index in range(len(source)))


def _has_one_caption(source: Source, index: int) -> bool:
    """A source may draw more than it lists: the ends of the draw must give the same."""
    captions = source[index].captions
    return len(captions) == 1 and source.caption(index, 0.0) == source.caption(index, np.nextafter(1, 0)) == captions[0]


def store_features(config: Config, method: Method, source: Source, accelerator: Accelerator) -> dict[str, Path]:
    """Computes what is not there yet, each process its part. All processes call this.

    An encoder with a sample that cannot be read is left out, and training encodes as usual: it replaces such samples.

    Returns:
        The name of each frozen tower with fixed inputs -> a file, float32 [N, F]: row i belongs to sample i.
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
    """Makes the file with all its bytes: one that is mapped and meets a full disk later would end the process (SIGBUS)."""
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(stage, "w+", np.float32, shape).flush()
        if hasattr(os, "posix_fallocate"):
            with stage.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, stage.stat().st_size)
    except OSError as error:
        stage.unlink(missing_ok=True)
        logger.warning(f"features are not kept between epochs: {stage.parent} cannot be written ({error.strerror})")


def _key(kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> str:
    """Changes with anything that the features depend on; the head, which learns, is not among it."""
    encoder = nn.ModuleDict({kind: Tower(tower.encoder, NoHead(tower.encoder.feature_dim))})
    model = Model(encoder, device=accelerator.device)
    with accelerator.main_process_first():  # The others find what it has read.
        data = source.identity
    return digest(model.fingerprint, data, config.train.precision)[:16]


@torch.no_grad()
def _fill(stage: Path, kind: str, tower: Tower, config: Config, source: Source, accelerator: Accelerator) -> None:
    rank, world = accelerator.process_index, accelerator.num_processes
    row, stop = (len(source) * part // world for part in (rank, rank + 1))
    features_NF = np.load(stage, mmap_mode="r+")
    size = config.train.micro_batch or config.train.batch_size // world
    inputs = _inputs(kind, tower.encoder, Subset(source, np.arange(row, stop)), size)
    with accelerator.autocast(), tqdm(total=stop - row, desc=f"{kind} features", disable=rank > 0, leave=False) as bar:
        for batch in inputs:
            rows = tower.encoder(batch.to(accelerator.device)).float().cpu().numpy()
            features_NF[row : row + len(rows)] = rows
            row += len(rows)
            bar.update(len(rows))
    features_NF.flush()


def _inputs(kind: str, encoder: Any, source: Source, size: int) -> Iterator[Tensor | Tokens]:
    """What training would show the encoder, in the order of the source."""
    if kind == "image":
        yield from (batch.float().div_(255) for batch in decoded_batches(source, encoder.preprocess, size))
        return
    for start in range(0, len(source), size):
        samples = [source[index] for index in range(start, min(start + size, len(source)))]
        yield encoder.tokenizer([checked_caption(sample.captions[0], sample.name) for sample in samples])
