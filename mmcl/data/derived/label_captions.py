"""Class names as captions: labelled images teach an image-text model through sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmcl.data.source import DerivedSource, Sample, Source
from mmcl.errors import UserError
from mmcl.files.digest import digest


class LabelCaptions(DerivedSource):
    """A labelled source whose samples are captioned by the name of their class, in every template (Radford et al., "Learning
    Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4).

    Samples of one class are positives of each other, whatever the templates drawn for them. A sample without a label has no
    caption, and is its own class.

    Args:
        source: with labels; captions that it has are not used.
        templates: sentences with one "{}" each.

    Raises:
        UserError: the source has no labels, there is no template, or one has no "{}".
    """

    def __init__(self, source: Source, templates: Sequence[str]):
        if source.labels is None or source.class_names is None:
            raise UserError("data.templates needs labels, and the training data have none: remove it, or set label_column")
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise UserError(f'data.templates: {wrong[0]!r} needs one "{{}}"' if wrong else "data.templates is empty: give one")
        super().__init__(source)
        self._captions = [tuple(t.replace("{}", name) for t in templates) for name in source.class_names]
        labels, rows = source.labels, np.arange(len(source))
        self.ids = np.where(labels >= 0, labels, len(source.class_names) + rows)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        return dataclasses.replace(sample, captions=() if sample.label is None else self._captions[sample.label])

    @property
    def fingerprint(self) -> str:
        return digest(self.source.fingerprint, self._captions)


def has_captions(source: Source) -> bool:
    """True if a source has captions: one among its first samples has."""
    return any(source[index].captions for index in range(min(len(source), 100)))
