"""Captions from class names, for image-text training on labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmcl.data.sample import Sample
from mmcl.data.source import DerivedSource, Source
from mmcl.errors import UserError
from mmcl.files.digest import digest


class LabelCaptions(DerivedSource):
    """A labeled source whose captions are the class names in every prompt template (Radford et al., "Learning Transferable
    Visual Models From Natural Language Supervision", 2021, section 3.1.4).

    Samples of one class are positives of each other, whatever the templates drawn for them. An unlabeled sample has no
    caption, and is its own class.

    Args:
        source: a labeled source; its own captions are not used.
        templates: prompt templates with one "{}" each.

    Raises:
        UserError: the source has no labels, `templates` is empty, or a template lacks "{}".
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


CAPTIONS_WANTED = (
    "put captions.csv with the columns image, caption beside the images; or, with a folder for each class, set "
    '--data.templates "a photo of a {}"'
)
"""What to do about images without captions."""


def has_captions(source: Source) -> bool:
    """True if any of the first samples of a source has a caption."""
    return any(source[index].captions for index in range(min(len(source), 100)))
