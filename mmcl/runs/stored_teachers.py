"""Stored teachers of a run: folders of shards of its training data, checked before training, and their rows by sample.

The first process reads each shard once, and writes the rows of the samples of the run into files in the run directory, in their
order. All processes map these into memory, and resumed runs use them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcl.config import Config
from mmcl.data.source import Source
from mmcl.data.stored_rows import StoredRows
from mmcl.engine.guards import run_on_first_process
from mmcl.engine.stored_teachers import StoredTeacher, embedded
from mmcl.errors import UserError
from mmcl.files.atomic import staged
from mmcl.files.digest import digest
from mmcl.files.mapped import reserve_array
from mmcl.methods.method import Method
from mmcl.runs.frozen_features import draws_listed
from mmcl.runs.stored_shards import EMBED_AGAIN, Shards, open_stored_shards, rows_of_samples

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFolders:
    """The shards of a teacher.

    Attributes:
        teacher: what the loss needs to know of it.
        folders: one for every source that the samples come from, in the order of `Source.origins`.
        width: numbers of each row.
        key: digest of the shards.
    """

    teacher: StoredTeacher
    folders: Sequence[Shards]
    width: int
    key: str

    def describe(self) -> str:
        """Return a line for the log."""
        one = self.teacher
        what = "images and captions" if one.has_text else "images alone, which are compared with each other"
        return f"teacher {one.name}: rows of {self.width} numbers for {what}, temperature {1 / one.scale:.3g}"


def open_teachers(config: Config, method: Method, source: Source) -> list[TeacherFolders]:
    """Return the teachers that `data.embeddings` names, in their order. Reads no shard.

    Raises:
        UserError: a folder is not complete, or was made from other data; data have no rows of a teacher; or a teacher has no
            temperature.
    """
    origins = source.origins.sources
    of_model: dict[tuple[str, bool], list[Shards]] = {}
    for folder in config.data.embeddings:
        one = open_stored_shards(Path(folder).expanduser(), origins, "data.embeddings")
        of_model.setdefault((one.plan.model, one.plan.features), []).append(one)
    return [_teacher(group, origins, config, method, source) for group in of_model.values()]


def _teacher(
    group: Sequence[Shards], origins: Sequence[Source], config: Config, method: Method, source: Source
) -> TeacherFolders:
    first, name = group[0], str(group[0].path)
    by_data = {one.plan.data: one for one in group}
    if len(by_data) < len(group):
        raise UserError(f"data.embeddings: {group[-1].path} and {name} have the rows of one model for the same data; give one")
    missing = next((one for one in origins if one.fingerprint not in by_data), None)
    if missing is not None:
        raise UserError(
            f"data.embeddings: the model of {name} has no rows of the {len(missing):,} samples like {missing[0].name}; give "
            "their folder, too"
        )
    chosen = [by_data[one.fingerprint] for one in origins]
    odd = next((one for one in chosen if one.width != first.width), None)
    if odd is not None:
        raise UserError(f"data.embeddings: rows of {name} have {first.width} numbers, and those of {odd.path} {odd.width}")
    has_text = any(one.texts for one in chosen) and bool(embedded(method, "text"))
    without = next((one for one in chosen if has_text and not one.texts), None)
    if without is not None:
        raise UserError(f"data.embeddings: {without.path} has no rows of captions; {EMBED_AGAIN}, after they have captions")
    if has_text and (several := _drawn_from_several(source)):
        raise UserError(
            f"data.embeddings: {name} has rows of captions as they are, and the training data draw others for {several}, which "
            "has several: it is not known which of them a text is made of; switch that off in the arguments of the data"
        )
    scale = _scale(first, config.train.distillation.temperature)
    if scale is None:
        raise UserError(f"data.embeddings: the rows of {name} have no temperature; set train.distillation.temperature")
    return TeacherFolders(
        teacher=StoredTeacher(name=name, scale=scale, bias=first.about.logit_bias, has_text=has_text),
        folders=chosen,
        width=first.width,
        key=digest(*(one.digest for one in chosen)),
    )


def _drawn_from_several(source: Source) -> str | None:
    """Return the name of a sample with several captions of which the source draws texts that it does not list."""
    if source.draws_as_listed:
        return None
    samples = ((index, source[index]) for index in range(len(source)))
    several = ((index, sample) for index, sample in samples if len(sample.distinct_captions) > 1)
    return next((sample.name for index, sample in several if not draws_listed(source, index)), None)


def _scale(shards: Shards, temperature: float | None) -> float | None:
    """Return the inverse temperature of a teacher; None if it has none, as features, which the model itself never compares."""
    if temperature is not None:
        return 1 / temperature
    return None if shards.plan.features else shards.about.logit_scale


def store_rows(
    teachers: Sequence[TeacherFolders], source: Source, run_dir: Path, accelerator: Accelerator
) -> dict[str, StoredRows]:
    """Write the rows of every sample into files in the run directory, unless they are there. All processes call this.

    Returns:
        Name of the rows in `Batch.stored` -> where they are.

    Raises:
        UserError: an image or a caption has no row, a shard is damaged, or the files cannot be written.
    """
    stored = {}
    for one in teachers:
        folder = run_dir / "features" / f"teacher-{digest(source.fingerprint, one.key, one.teacher.has_text)[:16]}"
        run_on_first_process(accelerator, partial(_write, one, source, folder))
        stored[f"{one.teacher.name}/image"] = StoredRows(folder / "images.npy")
        if one.teacher.has_text:
            stored[f"{one.teacher.name}/text"] = StoredRows(folder / "texts.npy", folder / "starts.npy")
    return stored


def _write(teacher: TeacherFolders, source: Source, folder: Path) -> None:
    """Write the rows of all samples, of each its image and its captions, in the order of the source, unless they are there."""
    if folder.exists():
        return
    dtype, width = teacher.folders[0].plan.dtype, teacher.width
    with staged(folder) as stage:
        stage.mkdir()
        image_ND = reserve_array(stage / "images.npy", (len(source), width), dtype)
        text_TD, start_N = None, np.arange(0)
        if teacher.teacher.has_text:
            counts = np.array([len(source[index].distinct_captions) for index in range(len(source))], np.int64)
            start_N = np.cumsum(counts) - counts
            np.save(stage / "starts.npy", start_N)
            text_TD = reserve_array(stage / "texts.npy", (int(counts.sum()), width), dtype)
        for shard, chosen, row_n in rows_of_samples(teacher.folders, source):
            for index, row in zip(chosen.tolist(), row_n.tolist(), strict=True):
                image_ND[index] = shard.row("image", row, source[index].name)
                if text_TD is not None:
                    for place, caption in enumerate(source[index].distinct_captions):
                        text_TD[start_N[index] + place] = shard.row("text", row, caption)
        image_ND.flush()
        if text_TD is not None:
            text_TD.flush()
