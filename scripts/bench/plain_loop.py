"""The peer of `build` in `search.py`: what one would write by hand, with its images, its model and its processor time."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_images(folder: Path, number: int, side: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for n in range(number):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        small[0, 0] = n % 256, n // 256 % 256, n // 65536
        Image.fromarray(small).resize((side, side)).save(folder / f"{n:06}.jpg", quality=85)


def tiny() -> Any:
    """A small convolutional network with random weights."""
    from torch import nn

    from mmcl.encoders.tower import TowerSpec, build_tower
    from mmcl.interop.model import Model

    torch.manual_seed(0)
    spec = TowerSpec(modality="image", encoder="small_cnn", head="linear", head_args={"embed_dim": 256})
    return Model(nn.ModuleDict({"image": build_tower(spec)}))


def plain_loop(model: Any, folder: Path) -> np.ndarray:
    """What one would write by hand: decoding in two workers, batches of 64."""
    from PIL import Image
    from torch.utils.data import DataLoader

    from mmcl.data.images.tensors import to_tensor

    files = sorted(folder.glob("*.jpg"))

    class Files(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int) -> torch.Tensor:
            return to_tensor(Image.open(files[number]).convert("RGB"), model.preprocess)

    with torch.inference_mode():
        batches = DataLoader(Files(), batch_size=64, num_workers=min(2, os.cpu_count() or 1))
        return np.concatenate([model.towers["image"](batch.float() / 255).numpy() for batch in batches])


def processor_seconds() -> float:
    """Processor time of this process and of the workers that have ended, which other work on the machine disturbs less."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
