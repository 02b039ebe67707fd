"""Embeds by exports in a process that cannot import mmcl, with what a user of each library writes, and no more.

`python elsewhere.py JOBS.json`: a list of {target, folder, inputs, out}; `inputs` is a folder of images and texts.json, and
`out` the .npz file to write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Images = list[Image.Image]
Rows = tuple[np.ndarray, np.ndarray]


def run_elsewhere(jobs: list[dict[str, str]]) -> None:
    """Does the jobs in such a process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "jobs.json").write_text(json.dumps(jobs))
        command = [sys.executable, __file__, f"{folder}/jobs.json"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class NotInstalled(MetaPathFinder):
    """Hides mmcl."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.partition(".")[0] == "mmcl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def transformers(folder: str, images: Images, texts: list[str]) -> Rows:
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    process, tokenize = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    padding = True if "attention_mask" in tokenize.model_input_names else "max_length"
    with torch.no_grad():
        image = model.get_image_features(**process(images, return_tensors="pt"))
        text = model.get_text_features(**tokenize(texts, padding=padding, truncation=True, return_tensors="pt"))
    return unit(image.pooler_output), unit(text.pooler_output)


def open_clip(folder: str, images: Images, texts: list[str]) -> Rows:
    import open_clip
    import torch

    model, _, show = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize, net = open_clip.get_tokenizer(f"local-dir:{folder}"), model.eval()
    with torch.no_grad():
        image = net.encode_image(torch.stack([show(one) for one in images]))
        text = net.encode_text(tokenize(texts))
    return unit(image), unit(text)


def sentence_transformers(folder: str, images: Images, texts: list[str]) -> Rows:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return model.encode(images), model.encode(texts)


def onnx(folder: str, images: Images, texts: list[str]) -> Rows:
    import onnxruntime

    pixels, ids, mask = graph_inputs(folder, images, texts)
    image, text = (onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in ("image", "text"))
    [image_rows] = image.run(["image_embeds"], {"pixels": pixels})
    [text_rows] = text.run(["text_embeds"], {"input_ids": ids, "attention_mask": mask})
    return image_rows, text_rows


def pt2(folder: str, images: Images, texts: list[str]) -> Rows:
    import torch

    pixels, ids, mask = (torch.from_numpy(one) for one in graph_inputs(folder, images, texts))
    image, text = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("image", "text"))
    with torch.no_grad():
        return image(pixels=pixels)["image_embeds"].numpy(), text(input_ids=ids, attention_mask=mask)["text_embeds"].numpy()


def graph_inputs(folder: str, images: Images, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of images that only need to be cropped, and tokens, by the files beside the graphs."""
    from tokenizers import Tokenizer

    settings, shown = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "preprocess.json"))
    settings, side = settings["tokenizer"], shown["size"]
    left = round((images[0].width - side) / 2)
    cropped = [one.convert("RGB").crop((left, left, left + side, left + side)) for one in images]
    pixels = np.stack([np.asarray(one, np.float32).transpose(2, 0, 1) / 255 for one in cropped])
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_padding(pad_id=settings["pad_id"])
    rows = tokenizer.encode_batch([text.lower() if settings["clean"] != "none" else text for text in texts])
    return pixels, np.array([one.ids for one in rows]), np.array([one.attention_mask for one in rows])


def unit(rows: Any) -> np.ndarray:
    unit_rows: np.ndarray = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    return unit_rows


def main(jobs: list[dict[str, str]]) -> None:
    for job in jobs:
        inputs = Path(job["inputs"])
        images = [Image.open(path) for path in sorted(inputs.glob("*.png"))]
        embed = globals()[job["target"]]
        image, text = embed(job["folder"], images, json.loads((inputs / "texts.json").read_text()))
        np.savez(job["out"], image=image, text=text)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where files have names of libraries
    sys.meta_path.insert(0, NotInstalled())
    main(json.loads(Path(sys.argv[1]).read_text()))
    assert not any(name.partition(".")[0] == "mmcl" for name in sys.modules)
