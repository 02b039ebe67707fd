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
    """Inputs to encode (the number of a source, or texts) and the method of `Model` that encodes them."""

    method: str
    inputs: int | list[str]
    options: dict[str, Any]


@dataclass(frozen=True)
class _End:
    """Outcome of the work in the first process."""

    result: Any = None
    failure: str | None = None


class SharedModel(Model):
    """A model whose inputs are split over the processes: contiguous shares in rank order, each item once, without padding.

    Args:
        model: the same in all processes.
        sources: data that all processes hold in this order; images of other sources are encoded by the first process alone.
    """

    def __init__(self, model: Model, sources: Sequence[Source]):
        scale = {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
        super().__init__(model.towers, embedding=model.embedding, device=model.device, **scale)  # type: ignore[arg-type]
        self._sources = sources
        self._number = {id(source): number for number, source in enumerate(sources)}

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process while the others encode their shares of its requests. All return its result.

        Raises:
            UserError: in all processes, if `work` raises one in the first. Any other error is raised there unchanged.
        """
        if rank() > 0:
            served: T = self._serve()
            return served
        try:
            result = work()
        except Exception as error:
            _broadcast(_End(failure=str(error)))
            raise
        _broadcast(_End(result))
        return result

    def encode_image(self, images: ImageLike | Sequence[ImageLike] | Source, **options: Any) -> np.ndarray:
        """Encode images as `Model.encode_image` does; only within `together`."""
        number = self._number.get(id(images))
        return super().encode_image(images, **options) if number is None else self._ask("encode_image", number, options)

    def image_logits(self, images: ImageLike | Sequence[ImageLike] | Source, **options: Any) -> np.ndarray:
        """Compute logits as `Model.image_logits` does; only within `together`."""
        number = self._number.get(id(images))
        return super().image_logits(images, **options) if number is None else self._ask("image_logits", number, options)

    def encode_text(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Encode texts as `Model.encode_text` does; only within `together`."""
        return self._ask("encode_text", [texts] if isinstance(texts, str) else list(texts), options)

    def _ask(self, method: str, inputs: int | list[str], options: dict[str, Any]) -> np.ndarray:
        request = _Request(method, inputs, options)
        _broadcast(request)
        return self._encode_share(request)

    def _serve(self) -> Any:
        while not isinstance(message := _broadcast(None), _End):
            with suppress(UserError):  # The first process has the error too and reports it.
                self._encode_share(message)
        if message.failure is not None:
            raise UserError(message.failure)
        return message.result

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
