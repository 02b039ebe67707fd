"""A folder of colored squares with captions, and a configuration that learns it in a second."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

from PIL import Image

from mmcl.config import Config, load_config
from tests.warm import launch

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (230, 220, 30), "black": (10, 10, 10)}
SIZES = {"tiny": 4, "small": 8, "medium": 14, "large": 20, "huge": 26}

YAML = """
method: {name: clip}
image:
  encoder: {name: small_cnn, args: {image_size: 16, channels: 3, feature_dim: 32}}
  head: {name: linear, args: {embed_dim: 16}}
text: {encoder: {name: small_text, args: {width: 32, layers: 1, heads: 2}}, head: {name: linear, args: {embed_dim: 16}}}
data: {augment: [{name: affine, args: {rotation: 10}}]}
optim: {lr: 3e-3}
train: {batch_size: 12, steps: 8, log_every: 1, threads: 1}
"""


def make_folder(folder: Path) -> Path:
    """25 images, `captions.csv` beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for color, value in COLORS.items():
            for size, side in SIZES.items():
                picture = Image.new("RGB", (32, 32), "white")
                picture.paste(value, (3, 3, 3 + side, 3 + side))
                picture.save(folder / f"{color}_{size}.png")
                writer.writerow([f"{color}_{size}.png", f"a {size} {color} square"])
    return folder


def tiny_config(folder: Path, run_dir: Path, *flags: str) -> Config:
    """The configuration above on images in `folder`, written to `run_dir`."""
    path = folder.parent / "tiny.yaml"
    path.write_text(YAML)
    return load_config(path, ["--data.train.path", str(folder), "--run_dir", str(run_dir), *flags])


WITH_FEW_TOKENS = """
import runpy, sys
from tests.faults.runs import small_vocabulary
sys.argv = sys.argv[1:]
with small_vocabulary():
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(*words: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Runs `scripts/train.py` in several processes. Returns what the first printed, once all are done."""
    first, *others = [child.wait() for child in launch(processes, "-c", WITH_FEW_TOKENS, str(SCRIPT), *words)]
    assert all(one.returncode == first.returncode for one in others)
    return first
