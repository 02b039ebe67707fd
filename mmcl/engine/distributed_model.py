"""Distributed encoding: the first process evaluates the model, and all processes share the encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from mmcl.core.gather import gather_rows, rank, row_counts, world_size
from mmcl.data.derived.subset import Subset
from mmcl.data.sample import ImageLike
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.interop.model import Model

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """Inputs to encode (the number of a source, or texts), the number of the model, and its method that encodes them."""

    model: int
    method: str
    inputs: int | list[str]
    options: dict[str, Any]


@dataclass(frozen=True)
class _End:
    """The work in the first process has ended, or failed."""

    failure: str | None = None


def encode_together(models: Sequence[Model], sources: Sequence[Source], work: Callable[[Sequence[Model]], T]) -> T | None:
    """Run `work` on models in the first process, while the others encode their shares of its requests.

    Args:
        models: the same in all processes.
        sources: data that all processes hold in this order; images of other sources are encoded by the first process alone.
        work: gets models that split their inputs over the processes.

    Returns:
        The result of `work` in the first process, None in the others.

    Raises:
        UserError: in all processes, if `work` raises one in the first. Any other error is raised there unchanged.
    """
    if world_size() == 1:
        return work(models)
    shared = [SharedModel(model, sources, number) for number, model in enumerate(models)]
    if rank() > 0:
        _serve(shared)
        return None
    try:
        result = work(shared)
    except Exception as error:
        _broadcast(_End(failure=str(error)))
        raise
    _broadcast(_End())
    return result


def _serve(models: Sequence[SharedModel]) -> None:
    while not isinstance(message := _broadcast(None), _End):
        with suppress(UserError):  # The first process has the error too and reports it.
            models[message.model]._encode_share(message)
    if message.failure is not None:
        raise UserError(message.failure)


class SharedModel(Model):
    """A model whose inputs are split over the processes: contiguous shares in rank order, each item once, without padding.

    Only within `encode_together`.
    """

    def __init__(self, model: Model, sources: Sequence[Source], number: int):
        scale = {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
        super().__init__(model.towers, embedding=model.embedding, device=model.device, **scale)  # type: ignore[arg-type]
        self._sources, self._model = sources, number
        self._number = {id(source): number for number, source in enumerate(sources)}

    def encode_image(self, images: ImageLike | Sequence[ImageLike] | Source, **options: Any) -> np.ndarray:
        """Encode images as `Model.encode_image` does."""
        number = self._number.get(id(images))
        return super().encode_image(images, **options) if number is None else self._ask("encode_image", number, options)

    def image_logits(self, images: ImageLike | Sequence[ImageLike] | Source, **options: Any) -> np.ndarray:
        """Compute logits as `Model.image_logits` does."""
        number = self._number.get(id(images))
        return super().image_logits(images, **options) if number is None else self._ask("image_logits", number, options)

    def encode_text(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Encode texts as `Model.encode_text` does."""
        return self._ask("encode_text", [texts] if isinstance(texts, str) else list(texts), options)

    def _ask(self, method: str, inputs: int | list[str], options: dict[str, Any]) -> np.ndarray:
        request = _Request(self._model, method, inputs, options)
        _broadcast(request)
        return self._encode_share(request)

    def _encode_share(self, request: _Request) -> np.ndarray:
        """Return all rows. Raises UserError in every process when one of them could not encode its share."""
        whole = self._sources[request.inputs] if isinstance(request.inputs, int) else request.inputs
        start, stop = (len(whole) * part // world_size() for part in (rank(), rank() + 1))
        share = Subset(whole, np.arange(start, stop)) if isinstance(whole, Source) else whole[start:stop]
        local, failure = torch.empty(0), None
        try:
            local = torch.from_numpy(getattr(Model, request.method)(self, share, **request.options)).to(self.device)
        except UserError as error:
            failure = str(error)
        failures: list[str | None] = [None] * world_size()
        dist.all_gather_object(failures, failure)
        for failure in filter(None, failures):
            raise UserError(failure)
        return gather_rows(local, row_counts(local)).cpu().numpy()


def _broadcast(message: Any) -> Any:
    """Return the first process's message in all processes."""
    box = [message]
    dist.broadcast_object_list(box, src=0)
    return box[0]
