"""Throughput of data loading, next to other toolkits: photos from shards, augmentation of small images, an index of a million.

Cases are named as they are printed. `photos 0.9 open_clip`: JPEG photos of 640 x 480 pixels, of which a random part of 0.9 to 1
of the area becomes a normalized tensor of 224 x 224, from tar shards by mmcl's source and by open_clip's own pipeline;
`ImageFolder` is torchvision's, of the same photos as files. `emoji tensor` and `mnist PIL`: the augmentation of these presets,
of a batch at once and by torchvision v2 one one at a time, as float tensors or from PIL images. `index`: opening shards
that were indexed before, up to the first batch. `order`: whether batches are the same for 0, 1, 2 and 4 loader processes.

Rates are images per second of one core's time, loaded in one thread of the measuring process. The time to the first batch is
by the clock, from opening the data, imports not counted. Every value is measured in a process of its own, mmcl and the other in
turn, and is the median over the rounds. The photos are parts of those that scikit-image and scikit-learn ship.

python scripts/bench/data.py --cases "photos*" "emoji*" --json data.json
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from side_by_side import Case, add_arguments, compare, peak_memory, write_json

from mmcl.config import ComponentConfig
from mmcl.data.augment.pipeline import AugmentationPipeline
from mmcl.data.batches.loader import StepBatches
from mmcl.data.batches.order import Order
from mmcl.data.batches.views import ImageView
from mmcl.data.images.crop import RandomResizedCrop
from mmcl.data.sources.shards.source import WebDatasetSource
from mmcl.preprocess import Preprocess
from mmcl.types import Tokens

SIZE, BATCH = 224, 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
AREAS = {"0.9": (0.9, 1.0), "0.08": (0.08, 1.0)}
PEERS = {"open_clip": "open_clip get_wds_dataset", "ImageFolder": "torchvision ImageFolder + DataLoader"}
SMALL = {"emoji": (3, 40), "mnist": (1, 28)}
AUGMENTATIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "emoji": [
        ("affine", {"rotation": 7, "scale": [0.87, 1.15], "translation": 0.08, "shear": 5, "p": 0.95}),
        ("color_jitter", {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05, "p": 0.8}),
        ("grayscale", {"p": 0.05}),
        ("blur", {"p": 0.1}),
    ],
    "mnist": [
        ("affine", {"rotation": 15, "scale": [0.85, 1.15], "translation": 0.1, "shear": 10, "fill": 0.0}),
        ("erase", {"p": 0.3}),
    ],
}
RATE, FIRST = {"rate": "1/s"}, {"first batch": "s"}


def all_cases() -> list[str]:
    photos = [f"photos {area} {peer}" for area in AREAS for peer in PEERS]
    return [*photos, *(f"{name} {kind}" for name in SMALL for kind in ("tensor", "PIL")), "index", "order"]


# The data, made once.


def originals() -> list[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    pixels = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    return [Image.fromarray(array) for array in pixels]


def photos(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Different parts of the originals, resized."""
    draw, sources = np.random.default_rng(0), originals()
    for number in range(count):
        original = sources[number % len(sources)]
        scale = min(original.width / width, original.height / height) * draw.uniform(0.7, 1)
        part_width, part_height = scale * width, scale * height
        left, top = draw.uniform(0, original.width - part_width), draw.uniform(0, original.height - part_height)
        box = (left, top, left + part_width, top + part_height)
        yield original.resize((width, height), Image.Resampling.LANCZOS, box=box)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def prepare_photos(folder: Path, count: int) -> None:
    """The same photos in `shards` and, as ImageFolder wants them, in `files`."""
    shards, files = folder / "shards", folder / "files" / "only_class"
    for place in (shards, files):
        place.mkdir(parents=True)
    photo = [encoded(image, "JPEG", quality=90) for image in photos(count, 640, 480)]
    for number, content in enumerate(photo):
        (files / f"{number:06}.jpg").write_bytes(content)
    parts = range(0, count, max(1, count // 8))
    for shard, start in enumerate(parts):
        members = [(f"{n:06}", photo[n]) for n in range(start, min(start + parts.step, count))]
        pairs = [
            pair for key, content in members for pair in ((f"{key}.jpg", content), (f"{key}.txt", f"photo {key}".encode()))
        ]
        write_shard(shards / f"{shard:05}.tar", pairs)


def prepare_index(folder: Path, count: int) -> None:
    one = encoded(next(photos(1, 8, 8)), "PNG")
    folder.mkdir(parents=True)
    for start in range(0, count, 10_000):
        keys = [f"{number:08}" for number in range(start, min(start + 10_000, count))]
        pairs = (pair for key in keys for pair in ((f"{key}.png", one), (f"{key}.txt", f"sample {key}".encode())))
        write_shard(folder / f"{start // 10_000:05}.tar", pairs)


def prepared(folder: Path, prepare: Callable[[Path, int], None], count: int) -> Path:
    """The data of a case, which stay for the next run, with mmcl's index of them."""
    place = folder / f"{prepare.__name__}-{count}"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as stage:
            prepare(Path(stage) / "data", count)
            (Path(stage) / "data").rename(place)
        shards = place / "shards" if (place / "shards").exists() else place
        WebDatasetSource(str(shards), str(folder))
    return place


def data_of(case: str, arguments: argparse.Namespace) -> Path:
    if case == "index":
        return prepared(arguments.folder, prepare_index, arguments.samples)
    return prepared(arguments.folder, prepare_photos, arguments.photos)


# The two sides of each case.


def tokenizer(texts: Any) -> torch.Tensor:
    """The same for both sides, and free: images are measured."""
    return torch.zeros(len(texts), 77, dtype=torch.long)


def our_batches(shards: Path, root: Path, batch_size: int, view: ImageView) -> StepBatches:
    source = WebDatasetSource(str(shards), str(root))
    ids = lambda texts: Tokens(tokenizer(texts), torch.ones(len(texts), 77, dtype=torch.bool))  # noqa: E731
    order = Order(len(source), batch_size, seed=0)
    return StepBatches(source, order, images={"image": view}, texts=["text"], tokenizer=ids)


def our_photos(data: Path, root: Path, area: str) -> Iterator[torch.Tensor]:
    view = ImageView(number=0, preprocess=Preprocess(size=SIZE), crop=RandomResizedCrop(scale=AREAS[area]))
    batches = our_batches(data / "shards", root, BATCH, view)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for step in range(len(batches.source) // BATCH):
        yield batches[step].views["image"].sub_(mean).div_(std)  # type: ignore[union-attr]


def open_clip_photos(data: Path, area: str) -> Iterator[torch.Tensor]:
    from open_clip import AugmentationCfg, image_transform
    from open_clip_train.data import get_wds_dataset

    shards = sorted((data / "shards").glob("*.tar"))
    transform = image_transform(SIZE, is_train=True, mean=MEAN, std=STD, aug_cfg=AugmentationCfg(scale=AREAS[area]))
    arguments = SimpleNamespace(
        train_data=f"{data}/shards/{{{shards[0].stem}..{shards[-1].stem}}}.tar",
        train_num_samples=len(list((data / "files" / "only_class").iterdir())),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        workers=0,
        world_size=1,
    )
    loader = get_wds_dataset(arguments, transform, is_train=True, floor=True, tokenizer=tokenizer).dataloader
    return (images for images, _ in loader)


def image_folder_photos(data: Path, area: str) -> Iterator[torch.Tensor]:
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    bicubic = T.InterpolationMode.BICUBIC
    crop = T.RandomResizedCrop(SIZE, scale=AREAS[area], interpolation=bicubic)
    files = ImageFolder(str(data / "files"), T.Compose([crop, T.ToTensor(), T.Normalize(MEAN, STD)]))
    return (images for images, _ in torch.utils.data.DataLoader(files, BATCH, shuffle=True, drop_last=True))


def measure_photos(data: Path, root: Path, area: str, peer: str, side: str) -> dict[str, float]:
    def batches() -> Iterator[torch.Tensor]:
        if side == "mmcl":
            return our_photos(data, root, area)
        return open_clip_photos(data, area) if peer == "open_clip" else image_folder_photos(data, area)

    next(batches())  # Imports and the libraries' own buffers.
    opened = time.perf_counter()
    stream = batches()
    next(stream)
    first = time.perf_counter() - opened
    started = time.process_time()
    count = sum(len(images) for images in stream)
    return {"rate": count / (time.process_time() - started), "first batch": first}


def torchvision_twin(name: str, kind: str) -> Callable[[Any], torch.Tensor]:
    """The same operations in torchvision, of one one."""
    from torchvision.transforms import v2 as T

    bilinear = T.InterpolationMode.BILINEAR
    twin: Callable[[Any], torch.Tensor]
    to_tensor = [T.ToImage(), T.ToDtype(torch.float32, scale=True)] if kind == "PIL" else []
    if name == "mnist":
        affine = T.RandomAffine(15, (0.1, 0.1), (0.85, 1.15), 10, interpolation=bilinear)
        twin = T.Compose([affine, *to_tensor, T.RandomErasing(0.3, (0.02, 0.2), value=0.5)])
        return twin
    white = 255 if kind == "PIL" else 1.0
    affine = T.RandomApply([T.RandomAffine(7, (0.08, 0.08), (0.87, 1.15), 5, interpolation=bilinear, fill=white)], 0.95)
    jitter = T.RandomApply([T.ColorJitter(0.2, 0.2, 0.2, 0.05)], 0.8)
    blur = T.RandomApply([T.GaussianBlur(13, (0.1, 2.0))], 0.1)
    twin = T.Compose([affine, jitter, T.RandomGrayscale(0.05), blur, *to_tensor])
    return twin


def measure_augmentation(data: Path, name: str, kind: str, side: str) -> dict[str, float]:
    channels, size = SMALL[name]
    files = sorted((data / "files" / "only_class").iterdir())[:512]
    small = [Image.open(file).convert("L" if channels == 1 else "RGB").resize((size, size)) for file in files]
    count = len(small)
    stacked = torch.from_numpy(np.stack([np.array(image).reshape(size, size, channels) for image in small]))
    tensor = stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)
    augment: Callable[[], torch.Tensor]
    if side == "mmcl":
        pipeline = AugmentationPipeline.build(
            [ComponentConfig(name=operation, args=args) for operation, args in AUGMENTATIONS[name]]
        )
        index = np.arange(count)
        augment = lambda: pipeline(tensor, seed=0, epoch=np.zeros_like(index), index=index)  # noqa: E731
    else:
        twin = torchvision_twin(name, kind)
        images = small if kind == "PIL" else list(tensor)
        augment = lambda: torch.stack([twin(one) for one in images])  # noqa: E731
    augment()
    started, times = time.process_time(), 0
    while time.process_time() - started < 1:
        augment()
        times += 1
    return {"rate": times * count / (time.process_time() - started)}


def measure_index(data: Path, root: Path) -> dict[str, float]:
    view = ImageView(number=0, preprocess=Preprocess(size=32))
    before = peak_memory()
    started = time.perf_counter()
    source = WebDatasetSource(str(data), str(root))
    order = Order(len(source), 256, seed=0)
    batches = StepBatches(source, order, images={"image": view}, cache=False)
    assert len(batches[0].index) == 256
    seconds = time.perf_counter() - started
    return {"first batch": seconds, "memory": peak_memory() - before}


def measure_order(data: Path, root: Path) -> dict[str, float]:
    """Raises SystemExit where the batches differ."""
    augment = AugmentationPipeline.build([ComponentConfig(name="hflip"), ComponentConfig(name="color_jitter")])
    view = ImageView(number=0, preprocess=Preprocess(size=64), crop=RandomResizedCrop(scale=(0.08, 1.0)), augment=augment)
    batches = our_batches(data / "shards", root, 32, view)
    found = {}
    for workers in (0, 1, 2, 4):
        state = hashlib.sha256()
        for batch in torch.utils.data.DataLoader(batches, sampler=range(6), batch_size=None, num_workers=workers):
            for part in (batch.index, batch.ids, batch.views["image"]):
                state.update(part.numpy().tobytes())
        found[workers] = state.hexdigest()[:12]
    print(f"batches by number of workers: {found}")
    if len(set(found.values())) > 1:
        raise SystemExit("order: the batches depend on the number of workers")
    return {"equal": 1.0}


def measure(case: str, side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side of one case, in this process: values by measure, or {"missing": module}."""
    torch.set_num_threads(1)
    data, (name, *rest) = data_of(case, arguments), case.split()
    try:
        if name in SMALL:
            return measure_augmentation(data, name, rest[0], side)
        if name == "index":
            return measure_index(data, arguments.folder)
        if name == "order":
            return measure_order(data, arguments.folder)
        return measure_photos(data, arguments.folder, rest[0], rest[1], side)
    except ModuleNotFoundError as error:
        return {"missing": error.name}


def as_case(case: str, arguments: argparse.Namespace) -> Case:
    data_of(case, arguments)  # Not in the process that is measured.
    name, kind = case.split()[0], case.split()[-1]
    if name in SMALL:
        return Case(case, RATE, f"torchvision v2 ({kind})")
    if name == "photos":
        return Case(case, RATE | FIRST, PEERS[kind])
    return Case(case, FIRST | {"memory": "MiB"} if name == "index" else {"equal": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["*"], help="names or patterns of cases")
    parser.add_argument("--photos", type=int, default=1024, help="JPEG photos in the shards, at least 192")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the index; 2 KB each on the disk")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "mmcl_bench_data", help="where the data are made, and stay"
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.cases[0], arguments.side, arguments)))
        return
    chosen = [case for case in all_cases() if any(fnmatch.fnmatch(case, pattern) for pattern in arguments.cases)]
    if not chosen:
        parser.error(f"no case is named like {' '.join(arguments.cases)}; there are: {', '.join(all_cases())}")
    sizes = ["--photos", str(arguments.photos), "--samples", str(arguments.samples), "--folder", str(arguments.folder)]
    write_json(arguments.json, "data", compare((as_case(case, arguments) for case in chosen), arguments, sizes))


if __name__ == "__main__":
    main()
