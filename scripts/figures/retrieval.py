"""Draws docs/retrieval.png from the report of a run: python scripts/figures/retrieval.py runs/clip_emoji docs/retrieval.png"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from mmcl.evaluate import Report
from mmcl.evaluate.reporting.figures import example_figure


def draw(report: Report) -> Image.Image:
    """The examples of the first dataset of a report; 256 colors suffice for them, and make the file a third as large."""
    if not report.examples:
        raise SystemExit("the report has no examples; evaluate retrieval or knn")
    data = report.examples[0].data
    figure = example_figure([one for one in report.examples if one.data == data])
    return Image.open(io.BytesIO(figure)).convert("RGB").quantize(256, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory with a report")
    parser.add_argument("out", type=Path, help="a PNG file")
    args = parser.parse_args()
    draw(Report.load(args.run / "report")).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
