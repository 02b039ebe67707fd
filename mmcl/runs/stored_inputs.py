"""Training data whose images or texts are stored rows: the encoders that stand for them, and the settings they exclude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mmcl.config import ComponentConfig, Config, TowerConfig
from mmcl.data.source import Source
from mmcl.data.stored_rows import StoredRow, read_rows, rows_of_texts
from mmcl.encoders.rows import ROWS
from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.interop.stored_inputs import check_rows
from mmcl.methods.method import Method

_LOOKED_AT = 100
"""Samples among which one with a caption is found."""


def stored_inputs(source: Source) -> dict[str, list[StoredRow]]:
    """Return "image", "text" or both, if stored rows stand for them, with a row of each dataset that the samples come from.

    Raises:
        UserError: of several datasets, some have stored rows and others have none.
    """
    found = [_rows_of(one) for one in source.origins.sources]
    for kind in ("image", "text"):
        if len({kind in rows for rows in found}) > 1:
            raise UserError(f"data.mix: stored rows stand for {kind}s in some of the datasets alone; give them in all or none")
    return {kind: [rows[kind] for rows in found] for kind in found[0]}


def _rows_of(source: Source) -> dict[str, StoredRow]:
    rows = {"image": source[0].row}
    samples = map(source.__getitem__, range(min(len(source), _LOOKED_AT)))
    rows["text"] = next((row for sample in samples for row in rows_of_texts(sample.captions)), None)
    return {kind: row for kind, row in rows.items() if row is not None}


def with_widths(config: Config, source: Source) -> Config:
    """Return the configuration with the width and the origin of the stored rows in the encoders `rows`, where it leaves them
    open."""
    for kind, rows in stored_inputs(source).items():
        tower: TowerConfig | None = getattr(config, kind)
        if tower is not None and tower.encoder is not None and tower.encoder.name == ROWS:
            own = {"width": read_rows(rows[:1]).shape[1], "written_by": rows[0].model}
            encoder = ComponentConfig(name=ROWS, args={**own, **tower.encoder.args})
            config = replace(config, **{kind: replace(tower, encoder=encoder)})  # type: ignore[arg-type]
    return config


def check_stored_inputs(config: Config, method: Method, source: Source) -> None:
    """Check that encoders and data go together where stored rows stand for inputs.

    Raises:
        UserError: an encoder cannot read the rows, or would have to learn from them, or reads nothing but rows and there are
            none; or a setting of images has no effect.
    """
    stored = stored_inputs(source)
    towers: Mapping[str, Tower] = dict(method.towers)  # type: ignore[arg-type]
    for kind, tower in towers.items():
        if kind in stored:
            check_rows(tower, kind, stored[kind])
            if any(p.requires_grad for p in tower.encoder.parameters()):
                raise UserError(
                    f"{kind}.freeze: stored rows stand for the {kind}s, so the encoder cannot learn; set it to true"
                )
        elif not tower.encoder.encodes:
            raise UserError(f"{kind}.encoder {ROWS} reads stored rows, and the data have none: take the source `embeddings`")
    if "image" in stored:
        _refuse_settings_of_images(config)


def _refuse_settings_of_images(config: Config) -> None:
    data = config.data
    given = {f"data.{name}": getattr(data, name) for name in ("augment", "crop", "views", "max_pixels")}
    given["image.preprocess"] = config.image and config.image.preprocess
    for name in (name for name, value in given.items() if value):
        raise UserError(f"{name} has no effect: stored rows stand for the images; remove it")
