"""The plan of a folder of shards: everything that the bytes of its files depend on, written before the first of them.

Every process that works on the folder compares its own plan with the one that is there, so nothing can be mixed: not two
models, not two versions of a library whose sums differ in the last bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmcl.config import from_dict
from mmcl.errors import UserError
from mmcl.files.atomic import check_folder, write_file
from mmcl.files.digest import digest
from mmcl.files.untrusted import read_json

PLAN = "plan.json"
FORMAT = 1
CLASSES = "classes.parquet"
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """What a folder of shards will hold.

    Attributes:
        format: version of this format.
        model: fingerprint of the model.
        data: fingerprint of the source: the number, order and texts of its samples.
        rows: samples of the source, N.
        shard_rows: samples of each shard but the last, R; shard i has the samples i * R to (i + 1) * R - 1.
        features: whether the rows are the encoder's outputs before the head, of the images alone.
        dtype: of the embeddings, "float32" or "float16".
        classes: number of classes, which have a file of their own; 0 for none.
        device: kind of device, such as "cpu": others round otherwise.
        versions: those of the libraries that the numbers depend on.
    """

    format: int = FORMAT
    model: str
    data: str
    rows: int
    shard_rows: int
    features: bool
    dtype: str = "float32"
    classes: int
    device: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"format {self.format} is not known; a newer mmcl may read it")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype} is not known; it is {' or '.join(DTYPES)}")
        if self.rows < 1 or self.shard_rows < 1 or self.classes < 0:
            raise UserError("rows and shard_rows are at least 1, and classes at least 0")

    @property
    def shards(self) -> int:
        """Number of files of samples."""
        return -(-self.rows // self.shard_rows)

    @property
    def count(self) -> int:
        """Number of files: the shards in order, then that of the classes if there are any."""
        return self.shards + bool(self.classes)

    def file(self, number: int) -> str:
        """Name of a file by its number, from 0."""
        return CLASSES if number == self.shards else f"part-{number:05}-of-{self.shards:05}.parquet"

    @property
    def key(self) -> str:
        """Digest, which every file has in its metadata."""
        return digest(json.dumps(asdict(self), sort_keys=True))[:32]

    def samples(self, number: int) -> range:
        """Rows of the source in a shard."""
        return range(number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows))


def read_plan(folder: Path) -> ShardPlan:
    """Reads the plan of a folder. Raises UserError if there is none, or it is damaged or of a newer format."""
    path = folder / PLAN
    if not path.is_file():
        raise UserError(f"{folder}: has no {PLAN}, so it is no folder of shards; `mmcl embed DATA --out {folder}` writes one")
    content = read_json(path)
    try:
        return from_dict(ShardPlan, content, PLAN)
    except UserError as error:
        raise UserError(f"{path}: {error}; without the plan the shards cannot be continued, give another --out") from None


def settle_plan(folder: Path, plan: ShardPlan) -> None:
    """Writes the plan into a new folder, or compares it with the plan that is there.

    Raises:
        UserError: the folder holds something else, cannot be written, or was begun with another plan.
    """
    if not (folder / PLAN).is_file():
        check_shard_folder(folder, flag="--out")
        write_file(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")
    begun = read_plan(folder)  # also after writing it: two processes may have begun at once
    for name in (field.name for field in fields(plan)):
        old, new = getattr(begun, name), getattr(plan, name)
        if old != new:
            raise UserError(f"{folder} was begun with {_difference(name, old, new)}, or another --out")


def check_shard_folder(folder: Path, *, flag: str) -> None:
    """Checks before a computation that shards can be written. Raises UserError as `settle_plan` does but for the plan."""
    check_folder(folder, flag=flag, made_by=PLAN)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if PLAN not in held and any(not name.startswith(".") for name in held):
        name = next(name for name in held if not name.startswith("."))
        raise UserError(f"{flag} {folder}: holds {name}, and no shards; give a new folder")


def _difference(name: str, old: Any, new: Any) -> str:
    """What differs, up to the fix that is the same for all."""
    if name == "shard_rows":
        return f"--shard_rows {old}, not {new}: give --shard_rows {old}"
    if name == "dtype":
        return f"--dtype {old}, not {new}: give --dtype {old}"
    if name == "features":
        return "the features: give --features" if old else "the embeddings: leave out --features"
    if name in ("model", "data"):
        return f"another {'model or --dim' if name == 'model' else 'list of samples'} ({old[:8]}, not {new[:8]}): give that one"
    if name == "rows":
        return f"{old:,} samples, not {new:,}: give the same data"
    if name == "versions":
        library = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
        here = f"{library} {old.get(library)}"
        return f"{here}, not {new.get(library)}, and the last bits may differ: install {library} {old.get(library)}"
    return f"{name} {old}, not {new}: give the same"
