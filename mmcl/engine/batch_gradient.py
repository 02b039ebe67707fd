"""The gradient of a batch: encode, gather, loss, backward, in micro-batches and on all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcl import rng
from mmcl.config import TrainConfig
from mmcl.core.cached_backward import cached_backward, split_views
from mmcl.core.gather import gather_embeddings
from mmcl.engine.anchors import FeatureAnchor
from mmcl.engine.compilation import CompiledEncoders, lengthened
from mmcl.engine.guards import check_adapters
from mmcl.engine.matryoshka import NestedLoss
from mmcl.engine.repeated_texts import RepeatedTexts
from mmcl.engine.stored_teachers import DistilledLoss, StoredTeacher
from mmcl.engine.transfer import views_on
from mmcl.engine.weight_layout import Weights
from mmcl.methods.method import Method
from mmcl.types import Batch, Embeddings, LossOutput, Views

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mmcl.engine.activation_checkpointing import ActivationCheckpointing


class BatchGradient:
    """Accumulate the gradient of the loss of a batch.

    Args:
        accelerator: device, precision and processes.
        method: the method to train.
        weights: its weights.
        train: sets the size of micro-batches, the seed, the widths of prefixes and the weight of teachers.
        anchor: adds a distance to the loss, or None.
        teachers: what the stored rows of a batch are, see `mmcl.engine.stored_teachers`.
        repeats: marks texts that are encoded once, or None.
        changed: changes of the blocks of encoders, checked after the first backward pass.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        weights: Weights,
        train: TrainConfig,
        *,
        anchor: FeatureAnchor | None,
        teachers: Sequence[StoredTeacher] = (),
        repeats: RepeatedTexts | None = None,
        changed: Sequence[ActivationCheckpointing | CompiledEncoders] = (),
    ):
        self.accelerator, self.method, self.weights, self.train = accelerator, method, weights, train
        self.anchor, self.repeats, self.changed, self.is_checked = anchor, repeats, changed, False
        distilled = DistilledLoss(method, teachers, train.distillation) if teachers else None
        self.loss_parameters = method.loss_parameters  # listed once, because that walks through all modules
        self.other_loss = NestedLoss(method, train.matryoshka, distilled) if train.matryoshka.dims else distilled

    def on_device(self, views: Views) -> Views:
        """Return views on the device, in the lengths that the encoders take."""
        marked = self.repeats.mark(views) if self.repeats else views  # on the host, which knows then how many rows there are
        return lengthened(views_on(self.accelerator.device, marked), self.method)

    def accumulate(self, step: int, batch: Batch) -> tuple[Embeddings, dict[str, Tensor]]:
        """Accumulate the gradient of a step. Returns the inputs of the loss and this process's shares of loss and metrics."""
        pieces = self._pieces(batch)
        with self.accelerator.autocast():
            start = self.anchor.rows(map(self.on_device, pieces)) if self.anchor else {}
        embeddings, output = cached_backward(
            self.weights.encode,
            pieces,
            loss=lambda rows: self._loss(rows, start, batch),
            # Accelerate averages gradients over the processes, but the shares of the loss must be summed.
            backward=lambda result: self.accelerator.backward(result[1].loss * self.accelerator.num_processes),
            seed=lambda piece: self._seed(step, piece),
            prepare=self.on_device,
            no_sync=self.weights.no_sync,
            loss_parameters=self.loss_parameters,
        )
        self.weights.reduce()
        if not self.is_checked:
            check_adapters(self.method, self.accelerator)
            for change in self.changed:
                change.check()
            self.is_checked = True
        return embeddings, {"loss": output.loss, **output.metrics}

    def _pieces(self, batch: Batch) -> list[Views]:
        """Return the micro-batches; if there are several, frozen encoders run once instead of in both passes."""
        pieces = split_views(batch.views, self.train.micro_batch)
        frozen = {name for name in batch.views if self.method.tower(name).frozen}
        if len(pieces) == 1 or not frozen:
            return pieces
        # Gradients are disabled here so that DDP does not prepare for a backward pass that never comes.
        with torch.no_grad():
            return [{**piece, **self._features({name: piece[name] for name in frozen})} for piece in pieces]

    def _features(self, views: Views) -> Views:
        """Return the features of views of frozen encoders."""
        features: Views = self.weights.encode(self.on_device(views), frozen_only=True)
        return features

    def _seed(self, step: int, piece: int) -> None:
        """Seed the generators of the CPU and of the device in use; `torch.manual_seed` takes up to half a millisecond for all
        kinds of devices."""
        seed = rng.sample_seed(self.train.seed, step, self.accelerator.process_index, piece)
        device = self.accelerator.device
        if device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
            return
        generators: list[Any] = [torch.default_generator]
        if device.type == "cuda":
            generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        for generator in generators:
            generator.manual_seed(seed)

    def _loss(self, rows: Mapping[str, Tensor], start: Mapping[str, Tensor], batch: Batch) -> tuple[Embeddings, LossOutput]:
        positives = batch.labels if self.method.positives == "labels" else batch.ids
        assert positives is not None, "a run refuses data without labels before it starts"
        embeddings = gather_embeddings(rows, positives, text_ids=batch.text_ids, index=batch.index, stored=batch.stored)
        output = (self.other_loss or self.method.loss)(embeddings, batch)
        if self.anchor:
            output = self.anchor.add(output, rows, start, len(embeddings.all_ids))
        return embeddings, output
