"""Figures of data, as PNG bytes: some samples with their captions, and how the lengths and sizes are distributed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from mmcl.data.images.bands import decode_to_show
from mmcl.data.inspection import BINS, Inspection
from mmcl.data.sample import Sample
from mmcl.drawing import INK, PALETTE, WRONG, new_figure, png_bytes, text_style
from mmcl.errors import UserError
from mmcl.preprocess import Intensity

COLUMNS = 6


def contact_sheet(
    samples: Sequence[Sample], class_names: Sequence[str] | None = None, *, channels: int = 3, intensity: Intensity = None
) -> bytes:
    """The images of samples above their first captions, or the names of their classes; what is unusable is said in red.

    Args:
        samples: what is drawn.
        class_names: of their labels.
        channels, intensity: of the model that is to see the images, see `Preprocess`.
    """
    rows = -(-len(samples) // COLUMNS)
    figure = new_figure(11, 2.3 * rows)
    for number, sample in enumerate(samples, 1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        axes.set_axis_off()
        text, color = _description(sample, class_names), INK
        if sample.image is not None or sample.problem is not None:
            try:
                image = decode_to_show(sample.required_image(), name=sample.name, channels=channels, intensity=intensity)
                axes.imshow(image, cmap="gray" if image.mode == "L" else None)
            except UserError as error:
                text, color = str(error), WRONG
        lines = textwrap.wrap(text, 26, max_lines=3, placeholder=" …")
        style: dict[str, Any] = {"color": color, "fontsize": 8, **text_style()}
        axes.text(0.5, -0.06, "\n".join(lines), transform=axes.transAxes, ha="center", va="top", **style)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.98, bottom=0.25 / rows, hspace=0.4, wspace=0.1)
    return png_bytes(figure)


def histograms(found: Inspection) -> bytes:
    """Lengths of the captions, and widths and heights of the images, in samples each."""
    panels = {
        "characters of a caption": found.caption_lengths,
        "captions of a sample": found.captions_per_sample,
        "width in pixels": found.sides[:, 0],
        "height in pixels": found.sides[:, 1],
    }
    panels = {title: values for title, values in panels.items() if len(values)}
    figure = new_figure(3.2 * len(panels), 2.8)
    for number, (title, values) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.hist(values, bins=BINS, color=PALETTE[0])
        axes.set_xlabel(title, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return png_bytes(figure)


def _description(sample: Sample, class_names: Sequence[str] | None) -> str:
    if sample.captions or sample.label is None:
        return sample.captions[0] if sample.captions else sample.name
    return class_names[sample.label] if class_names else str(sample.label)
