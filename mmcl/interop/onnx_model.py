"""Models of ONNX, as `mmcl export --to onnx` writes them: onnxruntime, numpy and Pillow run them, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mmcl.data.images.resize import read_levels
from mmcl.data.images.uint8_kernel import resize_uint8
from mmcl.data.sample import ImageLike
from mmcl.errors import UserError, first_line, how_to_install
from mmcl.files.digest import digest
from mmcl.files.untrusted import existing_file
from mmcl.interop.encoding import Images, PairScores, as_many, check_dim, collected, read_in_batches, unit_prefixes
from mmcl.interop.graph_folder import (
    CONFIG,
    IMAGE_EMBEDS,
    IMAGE_INPUTS,
    IMAGE_LOGITS,
    PREPROCESS,
    TEXT_EMBEDS,
    TEXT_INPUTS,
    TOKENIZER,
    read_settings,
)
from mmcl.preprocess import Preprocess

if TYPE_CHECKING:
    import torch


_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxModel(PairScores):
    """A model that onnxruntime runs; an `EmbeddingModel` (see types.py), which `mmcl.load_model("onnx:FOLDER")` returns.

    It gives what the exported model gave, up to rounding: images are resized by Pillow, or by the same integer arithmetic as
    torchvision's, to the same pixels bit for bit. Only the preprocessing "torchvision_float" imports torchvision.

    Args:
        folder: as written by `mmcl export --to onnx`.
        device: "cpu", "cuda" or "cuda:1"; None uses the GPU if onnxruntime is the one for GPUs.

    Attributes:
        embed_dim: width D of the embeddings.
        logit_scale, logit_bias, class_names: as in `Model`.

    Raises:
        UserError: onnxruntime is not installed (extra `onnx`) or does not know the device, or a file is missing or damaged.

    Example:
        >>> import mmcl
        >>> report = mmcl.export(mmcl.load_model("runs/clip_emoji"), to="onnx", out="graphs")
        >>> mmcl.load_model("onnx:graphs").encode_text(["a cat", "a dog"]).shape
        (2, 256)
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device | None = None):
        self.folder = Path(folder).expanduser()
        file, self._preprocess, self._tokenizer = read_settings(self.folder)
        self.embed_dim = file.embed_dim
        self.logit_scale, self.logit_bias = file.logit_scale, file.logit_bias
        self.class_names: Sequence[str] | None = None if file.class_names is None else list(file.class_names)
        self.provenance = {"source": str(self.folder), "fingerprint": file.fingerprint}
        self._files: dict[str, Path] = {name: existing_file(self.folder / f"{name}.onnx") for name in file.towers}
        self._sessions = {name: _session(path, device) for name, path in self._files.items()}

    def __repr__(self) -> str:
        facts = [*self._sessions, f"embed_dim={self.embed_dim}"]
        if self.logit_scale is not None:
            facts.append(f"logit_scale={self.logit_scale:.4g}")
        return f"OnnxModel({', '.join(facts)}, folder={str(self.folder)!r})"

    @property
    def has_image(self) -> bool:
        """True if there is a graph for images."""
        return "image" in self._sessions

    @property
    def has_text(self) -> bool:
        """True if there is a graph for texts."""
        return "text" in self._sessions

    @property
    def preprocess(self) -> Preprocess:
        """Image preprocessing. Raises UserError if there is no graph for images."""
        if self._preprocess is None:
            raise self._missing("image", "preprocess")
        return self._preprocess

    @property
    def towers(self) -> NoReturn:
        """Graphs have no towers. Raises UserError, wherever weights are needed: `init`, `teacher`, another export."""
        raise UserError(f"onnx:{self.folder} is a graph without weights to train; give the run that it was exported from")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all files, in hexadecimal; computed once."""
        settings = [self.folder / name for name in (CONFIG, PREPROCESS, TOKENIZER)]
        graphs = [path for path in self.folder.iterdir() if path.name.startswith(tuple(self._files))]  # with external weights
        files = sorted(path for path in (*settings, *graphs) if path.is_file())
        return digest(*(part for path in files for part in (path.name, path)))

    def encode_image(
        self, images: ImageLike | Images, *, batch_size: int | None = None, progress: bool = False, dim: int | None = None
    ) -> np.ndarray:
        """Embeds images; arguments, result and errors as for `Model.encode_image`."""
        many = as_many(images)
        return self._collected(self._image_outputs(many, batch_size, IMAGE_EMBEDS), len(many), progress, dim)

    def image_logits(self, images: ImageLike | Images, *, batch_size: int | None = None) -> np.ndarray:
        """Logits of a classifier trained with labels: float32 [N, C]. Raises UserError if the model is none."""
        if self.class_names is None:
            raise UserError(f"onnx:{self.folder} was not trained with labels, so image_logits does not work")
        many = as_many(images)
        return collected(self._image_outputs(many, batch_size, IMAGE_LOGITS), len(many), len(self.class_names), progress=False)

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 256, progress: bool = False, dim: int | None = None
    ) -> np.ndarray:
        """Embeds texts; arguments, result and errors as for `Model.encode_text`."""
        rows = [texts] if isinstance(texts, str) else list(texts)
        return self._collected(self._text_outputs(rows, batch_size), len(rows), progress, dim)

    def _collected(self, batches: Iterator[np.ndarray], total: int, progress: bool, dim: int | None) -> np.ndarray:
        check_dim(self.embed_dim if dim is None else dim, self.embed_dim)
        return unit_prefixes(collected(batches, total, self.embed_dim, progress=progress), dim)

    def _image_outputs(self, images: Images, batch_size: int | None, output: str) -> Iterator[np.ndarray]:
        preprocess = self.preprocess
        batches = read_in_batches(
            images, preprocess, batch_size, lambda image, name: read_levels(image, preprocess, name=name, kernel=resize_uint8)
        )
        for batch in batches:
            yield self.run("image", dict(zip(IMAGE_INPUTS, [np.stack(batch).astype(np.float32) / 255], strict=True)), output)

    def _text_outputs(self, texts: Sequence[str], batch_size: int) -> Iterator[np.ndarray]:
        if self._tokenizer is None:
            raise self._missing("text", "encode_text")
        for start in range(0, len(texts), batch_size):
            ids, mask, _ = self._tokenizer.arrays(texts[start : start + batch_size])
            yield self.run("text", dict(zip(TEXT_INPUTS, [ids, mask.astype(np.int64)], strict=True)), TEXT_EMBEDS)

    def run(self, tower: str, inputs: Mapping[str, np.ndarray], output: str) -> np.ndarray:
        """Runs the graph of a tower on prepared inputs, see `mmcl.interop.graph_folder`. Raises UserError if it fails."""
        try:
            rows: np.ndarray = self._sessions[tower].run([output], dict(inputs))[0]
        except Exception as error:  # onnxruntime has classes of errors of its own, without a common base
            raise UserError(f"{self._files[tower]}: onnxruntime cannot run it ({first_line(error)}); export it again") from None
        width = len(self.class_names or ()) if output == IMAGE_LOGITS else self.embed_dim
        if rows.ndim != 2 or rows.shape[1] != width:
            raise UserError(
                f"{self._files[tower]} gives rows of {rows.shape[-1]} numbers, and {CONFIG} says {width}; export it again"
            )
        return rows

    def _missing(self, tower: str, method: str) -> UserError:
        return UserError(f"this model has no {tower} tower, so {method} does not work; load a model that has one")


def _session(path: Path, device: str | torch.device | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path.parent}: graphs of ONNX need onnxruntime: {how_to_install('onnx')}") from None
    here = onnxruntime.get_available_providers()
    usual = "cuda" if _PROVIDERS["cuda"] in here else "cpu"
    kind, _, number = str(usual if device is None else device).partition(":")
    provider = _PROVIDERS.get(kind)
    if provider not in here:
        raise UserError(f"onnxruntime has no device {str(device)!r} here; take cpu, or install onnxruntime-gpu for cuda")
    options = {"device_id": number} if number else {}
    settings = onnxruntime.SessionOptions()
    # Weights of 8 bits are unpacked once, when the graph is loaded, and not for every batch.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(path, settings, providers=[(provider, options)])
    except Exception as error:  # as when it runs
        raise UserError(f"{path}: onnxruntime cannot load it ({first_line(error)}); copy or export it again") from None
