"""Valid files of every kind that mmcl reads, and what random damage makes of them: run with a name, a seed and a number, this
reads a number of damaged copies of each file within a limit of memory, and prints whatever is neither read nor refused."""

from __future__ import annotations

import io
import json
import resource
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmcl.data.images.decode import decode
from mmcl.data.open import open_source
from mmcl.engine.checkpoint import verify
from mmcl.engine.run_state import read_run_state
from mmcl.errors import UserError
from mmcl.evaluate.embedding_file import stored_task
from mmcl.evaluate.head import Head
from mmcl.evaluate.reporting.report import Report
from mmcl.files.untrusted import read_tensors
from tests.security.test_hostile_values import (
    checkpoint_folder,
    embeddings_file,
    head_folder,
    index_folder,
    model_folder,
    report_folder,
    run_folder,
)

MEMORY = 2**30
"""Bytes beyond those that reading the valid file takes."""
Reader = Callable[[], Any]


def image(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def image_file(kind: str, folder: Path) -> Reader:
    folder.mkdir()
    (folder / "a").write_bytes(image(kind))
    return lambda: decode(folder / "a").load()


def array_file(suffix: str, folder: Path) -> Reader:
    folder.mkdir()
    with (folder / f"a{suffix}").open("wb") as file:
        (np.save if suffix == ".npy" else np.savez_compressed)(file, np.zeros((9, 7, 3), np.uint8))
    return lambda: decode(folder / f"a{suffix}").load()


def weights_file(name: str, folder: Path) -> Reader:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {"a.weight": torch.rand(5, 3), "a.bias": torch.rand(5)}
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save({"state_dict": tensors}, folder / name, _use_new_zipfile_serialization=name != "old.pt")
    return lambda: [tensor.sum().item() for tensor in read_tensors(folder / name).values()]


def samples(path: Path, root: Path) -> None:
    source = open_source("auto", str(path), str(root))
    for number in range(len(source)):
        sample = source[number]
        assert all(isinstance(caption, str) for caption in sample.captions)
        if sample.image is not None:
            try:
                decode(sample.image)
            except UserError:
                continue


def report(folder: Path) -> Reader:
    report_folder(folder)
    return lambda: Report.load(folder).to_html()


def checkpoint(folder: Path) -> Reader:
    checkpoint_folder(folder)
    (folder / "MANIFEST.json").unlink()
    (written,) = folder.iterdir()
    return lambda: read_run_state(verify(written))


def read_embeddings(path: Path) -> None:
    model, task = stored_task(path)
    assert np.isfinite(model.encode_image(task.source)).all()


def embeddings(folder: Path) -> Reader:
    embeddings_file(folder)()
    return lambda: read_embeddings(folder / "a.parquet")


ROWS = [{"image": f"{number}.png", "caption": f"a photo of {number}", "label": str(number % 2)} for number in range(4)]


def table_file(name: str, folder: Path) -> Reader:
    folder.mkdir()
    for row in ROWS:
        (folder / row["image"]).write_bytes(image("png"))
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), folder / name)
    elif name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif name.endswith(".json"):
        (folder / name).write_text(json.dumps({row["image"]: [row["caption"]] for row in ROWS}))
    else:
        (folder / name).write_text("\n".join(["image,caption,label", *(",".join(row.values()) for row in ROWS)]) + "\n")
    is_folder = name.startswith("captions")
    return lambda: samples(folder if is_folder else folder / name, folder)


def shard(folder: Path) -> Reader:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        for row in ROWS:
            texts = {"png": image("png"), "txt": row["caption"].encode(), "cls": b"1", "json": json.dumps(row).encode()}
            for suffix, content in texts.items():
                member = tarfile.TarInfo(f"{row['image'][0]}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return lambda: samples(folder / "a.tar", folder)


def head(folder: Path) -> Reader:
    head_folder(folder)
    return lambda: Head.load(folder / "head.safetensors")


KINDS: dict[str, tuple[Callable[[Path], Reader], list[str]]] = {
    "model": (model_folder, ["config.json", "tokenizer.json", "model.safetensors"]),
    "index": (index_folder, ["index.json", "*.safetensors"]),
    "report": (report, ["metrics.json", "details.json", "rows.safetensors"]),
    "identity": (run_folder, ["identity.json"]),
    "checkpoint": (checkpoint, ["MANIFEST.json", "optimizer.safetensors", "average.safetensors"]),
    "embeddings": (embeddings, ["a.parquet"]),
    "head": (head, ["head.safetensors"]),
    "safetensors": (partial(weights_file, "a.safetensors"), ["a.safetensors"]),
    "pt": (partial(weights_file, "a.pt"), ["a.pt"]),
    "old pt": (partial(weights_file, "old.pt"), ["old.pt"]),
    **{kind: (partial(image_file, kind), ["a"]) for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm")},
    **{suffix: (partial(array_file, suffix), [f"a{suffix}"]) for suffix in (".npy", ".npz")},
    **{name: (partial(table_file, name), [name]) for name in ("a.parquet", "a.csv", "a.jsonl")},
    **{name: (partial(table_file, name), [name]) for name in ("captions.csv", "captions.json", "captions.parquet")},
    "tar": (shard, ["a.tar"]),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut off, doubled, left out, or a number in them made large."""
    at, length = (int(rng.integers(1 + len(content))) for _ in range(2))
    kind = rng.integers(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[max(0, at - length % 64) :]
    if kind == 2:
        return content[:at] + content[at + 1 + length % 64 :]
    if kind == 3:
        return content[:at] + bytes([255] * (1 + length % 8)) + content[at + 1 + length % 8 :]
    made = bytearray(content)
    for place in rng.integers(len(content), size=1 if kind == 4 else 8):
        made[place] = rng.integers(256)
    return bytes(made)


def failures(kind: str, folder: Path, seed: int, count: int) -> Iterator[str]:
    make, patterns = KINDS[kind]
    read = make(folder)
    read()
    if sys.platform == "linux":  # where the limit of a process's address space is enforced
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    try:
        for pattern in patterns:
            (file,) = folder.rglob(pattern)
            valid = file.read_bytes()
            for number in range(count):
                content = damaged(valid, np.random.default_rng([seed, number]))
                file.write_bytes(content)
                try:
                    read()
                except UserError:
                    continue
                except BaseException as error:
                    (folder.parent / f"{kind}-{pattern.strip('*.')}-{number}".replace(" ", "_")).write_bytes(content)
                    yield f"{kind}: {file.name}, damage {number}: {type(error).__name__}: {str(error)[:200]}"
            file.write_bytes(valid)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    place, first, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in sys.argv[4:] or KINDS:
        print(name, file=sys.stderr, flush=True)
        for line in failures(name, place / name.strip(".").replace(" ", "_"), first, number):
            print(line, flush=True)
