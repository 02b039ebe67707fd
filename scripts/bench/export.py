"""Exports of every kind of towers to every format, and the speed of single images as an ONNX graph and in torch.

The first table has, for tiny towers of random weights: the largest difference of any number of an embedding from the model,
for the same pixels and tokens; and an arrow where a format is refused, to the one that the message names. The second has the
size and the time of writing, loading and comparing. In the third, mmcl is `onnx:FOLDER` and the peer the same model in torch,
each in processes of its own: the median time of an image, one after the other, decoded already; and the time and the memory
from the start of Python to the first embedding.

python scripts/bench/export.py --json export.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import Case, Row, add_arguments, compare, peak_memory, row, write_json

SPEEDS = ("clip_emoji", "ViT-B-32")
"""Towers whose speed is measured: those of the default run, and a released architecture."""
IMAGES = 40


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--towers", nargs="*", help="names in the first table; all by default")
    parser.add_argument("--to", nargs="*", help="formats; all by default")
    parser.add_argument("--cases", nargs="*", help=f"towers whose speed is measured; by default {' '.join(SPEEDS)}")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(speed(arguments.folder / arguments.cases[0], arguments.side, started)))
        return
    rows = matrix(arguments.towers, arguments.to)
    with tempfile.TemporaryDirectory() as folder:
        names = SPEEDS if arguments.cases is None else arguments.cases
        for name in names:
            write_both(name, Path(folder, name))
        cases = [Case(name, {"time": "ms", "start": "s", "memory": "MiB"}, "torch") for name in names]
        rows += compare(cases, arguments, ["--folder", folder])
    write_json(arguments.json, "export", rows)


def matrix(names: Sequence[str] | None, targets: Sequence[str] | None) -> list[Row]:
    """Exports everything, and prints both tables in Markdown."""
    from mmcl.interop.export import EXPORTS
    from tests.interop.export.models import MODELS

    names, targets = list(names or MODELS), list(targets or EXPORTS)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            model = MODELS[name](Path(folder, str(number)))
            found[name] = {to: cell(model, to, Path(folder, f"{number}_{to}")) for to in targets}
            print(f"{name}: {', '.join(f'{to} {shown(one)}' for to, one in found[name].items())}", flush=True)
    print_table("towers", targets, {name: [shown(cells[to]) for to in targets] for name, cells in found.items()})
    print_table("MB, seconds", targets, {name: [size(cells[to]) for to in targets] for name, cells in found.items()})
    return [one for name, cells in found.items() for to, values in cells.items() for one in rows_of(f"{name} to {to}", values)]


def cell(model: Any, to: str, out: Path) -> dict[str, Any]:
    """What became of one export: numbers, or the message that refuses it."""
    from mmcl.errors import UserError
    from mmcl.interop.export.exporting import export

    try:
        report = export(model, to=to, out=out)
    except UserError as error:
        return {"refused": str(error)}
    tensor, whole = report.parity.tensor, report.parity.end_to_end
    worst = {"same inputs": max(tensor.values()), "end to end": max(whole.values())}
    return {**worst, "size": report.megabytes, "time": report.seconds}


def shown(values: dict[str, Any]) -> str:
    if "refused" in values:
        fits = re.search(r"try --to (\w+)", values["refused"])
        return f"→ `{fits[1]}`" if fits else "refused"
    return f"{values['same inputs']:.0e}".replace("e-0", "e-") if values["same inputs"] else "0"


def size(values: dict[str, Any]) -> str:
    return "" if "refused" in values else f"{values['size']:.2f}, {values['time']:.1f}"


def print_table(title: str, targets: Sequence[str], rows: dict[str, list[str]]) -> None:
    print("\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in ([title, *targets], ["---"] * (len(targets) + 1))))
    print("\n".join(f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()) + "\n", flush=True)


def rows_of(case: str, values: dict[str, Any]) -> list[Row]:
    if "refused" in values:
        return [{"case": case, "measure": "refused", "unit": "", "mmcl": None, "message": values["refused"]}]
    units = {"same inputs": "", "end to end": "", "size": "MB", "time": "s"}
    return [row(case, measure, unit, values[measure]) for measure, unit in units.items()]


def write_both(name: str, folder: Path) -> None:
    """Writes a model of random weights as torch loads it, and as ONNX graphs."""
    from mmcl.config import load_config
    from mmcl.interop.export.exporting import export
    from mmcl.interop.load import load_model
    from mmcl.interop.model import build_model
    from mmcl.runs.build import build_method

    model = build_model(build_method(load_config(name))) if name == "clip_emoji" else load_model(f"open_clip:{name}")
    model.save(folder / "peer")
    export(model, to="onnx", out=folder / "mmcl")


def speed(folder: Path, side: str, started: float) -> dict[str, float]:
    """Embeds one image after the other."""
    import numpy as np

    import mmcl

    model = mmcl.load_model(f"onnx:{folder}/mmcl" if side == "mmcl" else folder / "peer", device="cpu")
    shown = model.preprocess
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (shown.height * 2, shown.width * 3, 3), dtype=np.uint8) for _ in range(IMAGES)]
    model.encode_image(images[0])
    start, times = time.perf_counter() - started, []
    for image in images:
        before = time.perf_counter()
        model.encode_image(image)
        times.append(1000 * (time.perf_counter() - before))
    return {"time": statistics.median(times), "start": start, "memory": peak_memory()}


if __name__ == "__main__":
    main()
