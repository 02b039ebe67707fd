"""Comparison of an export with its model: the same pixels and tokens, then the same images and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmcl.data.images.decode import decode
from mmcl.errors import UserError
from mmcl.files.listing import is_image, list_files
from mmcl.interop.export.target import LoadedClassifier, LoadedExport, LoadedModel
from mmcl.interop.model import Model
from mmcl.preprocess import Preprocess

_TEXTS = (
    "a photo of a cat",
    "Two dogs, on the beach!",
    "un café à Zürich",
    "日本語の写真",
    " ".join(["one red apple and two green pears on a table"] * 20),
)
_MOST_PHOTOS = 64


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute differences between the unit embeddings of an export and of its model.

    Attributes:
        tensor: for the same "pixels" and the same "tokens"; and of a classifier's "logits", as a part of the largest of them.
        end_to_end: for "images" of the model's size, "landscape", "portrait" and "odd" images (of which an odd number of pixels
            is cropped), "photos" of the user's, and "texts".
    """

    tensor: Mapping[str, float]
    end_to_end: Mapping[str, float]

    def beyond(self, bound: float, *, any_shape: bool) -> Iterator[str]:
        """Yields the differences above a bound, in words.

        Args:
            bound: largest difference allowed.
            any_shape: whether it also holds for images that are resized and cropped.
        """
        strict = {**self.tensor, **{name: self.end_to_end[name] for name in ("images", "texts") if name in self.end_to_end}}
        for name, value in {**strict, **(self.end_to_end if any_shape else {})}.items():
            if not value <= bound:
                yield f"{name} differ by {value:.2g}"


def measure(model: Model, export: LoadedExport, photos: Sequence[Image.Image] | None) -> Parity:
    """Encodes the same inputs by both.

    Args:
        model: the model, on the CPU.
        export: what was made of it.
        photos: images to compare besides generated ones.
    """
    tensor, end_to_end = {}, {}
    if model.has_image:
        tensor["pixels"] = _pixels(model, export)
        if model.class_names is not None and isinstance(export, LoadedClassifier):
            tensor["logits"] = _logits(model, export)
        shapes: dict[str, Sequence[Image.Image | np.ndarray]] = dict(generated_images(model.preprocess))
        for kind, images in {**shapes, **({} if photos is None else {"photos": photos})}.items():
            end_to_end[kind] = _largest(model.encode_image(images), export.encode_image(images))
    if model.has_text:
        tensor["tokens"] = _tokens(model, export)
        end_to_end["texts"] = _largest(model.encode_text(_TEXTS), export.encode_text(_TEXTS))
    return Parity(tensor, end_to_end)


def read_photos(folder: Path) -> list[Image.Image]:
    """Decodes the first images of a folder. Raises UserError if it has none, or one cannot be read."""
    paths = [folder / name for name in list_files(folder).names if is_image(name)][:_MOST_PHOTOS]
    if not paths:
        raise UserError(f"{folder}: this folder has no images to check with")
    return [decode(path) for path in paths]


def generated_images(preprocess: Preprocess) -> dict[str, list[Image.Image | np.ndarray]]:
    """Returns two images of each shape: smooth areas and edges with some noise, as photos have."""
    resize = preprocess.resize_size or preprocess.size
    height, width = resize if isinstance(resize, tuple) else (resize, resize)
    excess = next(n for n in range(1, 5) if (width + n - preprocess.width) % 4 == 3)
    side = max(height, width)
    short = side * 3 // 2
    # Of these, an even number of pixels is cropped: as many as a shift by one pixel cannot make.
    long = next(n for n in range(short * 2, short * 4) if (side * n // short - side) % 4 == 0)
    sizes = {"images": (height, width), "landscape": (short, long), "portrait": (long, short), "odd": (height, width + excess)}
    draw = np.random.default_rng(0)
    return {kind: [_image(*size, preprocess, draw) for _ in range(2)] for kind, size in sizes.items()}


def _image(height: int, width: int, preprocess: Preprocess, draw: np.random.Generator) -> Image.Image | np.ndarray:
    coarse = draw.uniform(0, 255, (4, 4, preprocess.channels))
    rows, columns = (np.arange(side) * 4 // side for side in (height, width))
    smooth = coarse[rows][:, columns] + np.linspace(-40, 40, width)[:, None]
    pixels = (smooth + draw.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    if preprocess.channels == 1:
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels) if preprocess.channels == 3 else pixels


def _pixels(model: Model, export: LoadedExport) -> float:
    """Batches of several sizes: the batch size of an exported graph may have become a constant."""
    ours = LoadedModel(model)
    return max(_largest(ours.embed_pixels(batch), export.embed_pixels(batch)) for batch in _random_pixels(model))


def _logits(model: Model, export: LoadedClassifier) -> float:
    ours, batches = LoadedModel(model), _random_pixels(model)
    largest = max(float(np.abs(ours.pixel_logits(batch)).max()) for batch in batches)
    return max(_largest(ours.pixel_logits(batch), export.pixel_logits(batch)) for batch in batches) / max(largest, 1e-12)


def _random_pixels(model: Model) -> Sequence[Tensor]:
    shown = model.preprocess
    generator = torch.Generator().manual_seed(0)
    pixels_BCHW = torch.rand(5, shown.channels, shown.height, shown.width, generator=generator)
    return [pixels_BCHW[:1], pixels_BCHW[1:]]


def _tokens(model: Model, export: LoadedExport) -> float:
    tokenizer = model.tokenizer
    batches: Sequence[Sequence[str]] = (_TEXTS[:1], ["", *_TEXTS], _TEXTS[:3])
    ours = LoadedModel(model)
    return max(_largest(ours.embed_tokens(tokens), export.embed_tokens(tokens)) for tokens in map(tokenizer, batches))


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max())
