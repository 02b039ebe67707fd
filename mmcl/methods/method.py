"""The contract of every method: encode, loss, commit.

`encode` does all the expensive work per sample. `loss` sees the rows of all processes, is cheap and changes no state. `commit`
is the only place that updates state other than weights. Because `loss` is pure, the gradient does not depend on the number of
processes.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.types import Batch, Embeddings, Features, ImagePatches, Input, LossFacts, LossOutput, RunFacts, Tokens, Views


class Method(nn.Module):
    """Base of all methods.

    Attributes:
        views: view name -> name of the tower that encodes it; set on the class, or on the instance if it depends on arguments.
        embedding: output of a trained model: the "projection", or the "features" before the head.
        unit_rows: whether the loss compares cosines, that is, rows of unit length.
        max_log_scale: logarithm of the largest inverse temperature, if `commit` limits it.
        positives: which rows are positives of each other, as `Embeddings.ids`: those with equal "ids" or equal "labels".
        init_args: keyword-only arguments, "temperature" or "bias", that are taken from the model that `init` of the
            configuration names unless the configuration sets them.
        takes_teacher: whether the method is built as `Method(towers, teacher, ...)`, where `teacher` is the image tower of the
            model that `teacher` of the configuration names, or None if it names none.
        pretrained: towers that start with trained weights: the whole "tower", or the "encoder" below a new head.
        from_init: what was taken from that model, in words; () if the method starts from random weights. For the log.
        test_args: arguments that make the method small enough for a test, for `mmcl.testing.check_method`.

    Raises:
        UserError: the signature of a subclass does not allow this; raised when the subclass is defined.
    """

    views: Mapping[str, Literal["image", "text"]]
    embedding: ClassVar[Literal["projection", "features"]]
    unit_rows: ClassVar[bool] = True
    positives: ClassVar[Literal["ids", "labels"]] = "ids"
    max_log_scale: float | None = None
    init_args: ClassVar[tuple[str, ...]] = ()
    takes_teacher: ClassVar[bool] = False
    pretrained: Mapping[str, Literal["tower", "encoder"]] = MappingProxyType({})
    from_init: tuple[str, ...] = ()
    test_args: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_signature(cls)

    def __init__(self, towers: nn.ModuleDict):
        super().__init__()
        for needed in sorted(set(self.views.values())):
            if needed not in towers:
                raise UserError(f"{type(self).__name__} needs the {needed} tower: add `{needed}:` to the configuration")
        for name in towers:
            if name not in self.views.values():
                raise UserError(f"{type(self).__name__} does not use the {name} tower: remove `{name}:` from the configuration")
        widths = {name: towers[name].embed_dim for name in towers}
        if len(set(widths.values())) > 1:
            raise UserError(f"the towers' embeddings differ in width: {widths}; set the same embed_dim in both heads")
        self.towers = towers

    def tower(self, view: str) -> Tower:
        """Return the tower that encodes a view."""
        return self.towers[self.views[view]]  # type: ignore[return-value]

    @property
    def embedded_views(self) -> Collection[str]:
        """Views whose rows, as `encode` returns them, are the embeddings by their towers; a predictor's outputs are not."""
        return self.views

    @property
    def nested_rows(self) -> Collection[str]:
        """Names of the rows that may all be cut to a prefix of any width, of unit length, before `loss` gets them, as
        `train.matryoshka` does; () if the loss needs the full width."""
        return ()

    @property
    def loss_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters used by `loss` itself, excluding those used by `encode` (towers and predictor)."""
        encoding = ("towers.", "predictor.")
        return [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(encoding)]

    @property
    def committed_parameters(self) -> list[nn.Parameter]:
        """Parameters that `commit` may change: those of teachers, and those of the loss, which it keeps in their range.

        The engine restores them, and all buffers, after a step that was not finite.
        """
        of_towers = {id(p) for p in self.towers.parameters()}
        teachers = [p for p in self.parameters() if not p.requires_grad and id(p) not in of_towers]
        return [*teachers, *self.loss_parameters]

    def configure(self, facts: RunFacts) -> None:
        """Set what depends on the size or length of the run. Called once, before the first step."""
        return

    def describe(self, global_batch: int) -> LossFacts:
        """Return properties of the loss known before training, for a batch of `global_batch` pairs with different ids."""
        return LossFacts()

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Embed every view: name -> rows [b, D]. A method may add rows under other names, such as those of a teacher."""
        return self.embed(self.towers, views, unit=self.unit_rows)

    def embed(self, towers: nn.ModuleDict, views: Views, *, unit: bool = True) -> dict[str, Tensor]:
        """Encode every view with its tower: name -> rows [b, D], normalized to unit length if `unit`.

        Image views with the same tower and shape share a forward pass (and its batch-norm statistics). Text views, each padded
        to its own length, do not.
        """
        passes: dict[Any, list[str]] = {}
        for name, view in views.items():
            passes.setdefault((self.views[name], name if isinstance(view, Tokens) else _shape(view)), []).append(name)
        rows: dict[str, Tensor] = {}
        for (tower, _), names in passes.items():
            outputs = towers[tower](_joined([views[name] for name in names]), unit=unit).chunk(len(names))
            rows.update(zip(names, outputs, strict=True))
        return rows

    def forward(self, views: Views, *, frozen_only: bool = False) -> Mapping[str, Input]:
        """Call `encode`; with `frozen_only`, return the views with those of frozen encoders replaced by their features.

        Both go through `forward` because wrappers of the method (DDP, FSDP, mixed precision) intercept only this call.
        """
        return self._encode_frozen(views) if frozen_only else self.encode(views)

    def _encode_frozen(self, views: Views) -> Views:
        towers = {name: self.tower(name) for name in views}
        return {name: towers[name].features(view) if towers[name].frozen else view for name, view in views.items()}

    @abstractmethod
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        """Return this process's share of the loss of the global batch. Does not change state."""

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        """Update state other than weights. Called once after every optimizer step."""
        return

    @property
    def logit_scale(self) -> Tensor | None:
        """Inverse temperature, a positive scalar; None if the loss has none."""
        return None

    @property
    def classes(self) -> int | None:
        """Number of classes of a classifier; None for other methods."""
        return None

    @property
    def logit_bias(self) -> Tensor | None:
        """Bias added to the logits, a scalar; None for softmax methods."""
        return None


def _check_signature(method: type[Method]) -> None:
    """Raise UserError if the engine cannot build a method or cannot supply an argument that it requires."""
    parameters = list(inspect.signature(method).parameters.values())
    keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    given = [one.name for one in parameters if one.kind not in (one.KEYWORD_ONLY, one.VAR_KEYWORD)]
    expected = ["towers", "teacher"] if method.takes_teacher else ["towers"]
    if given != expected and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        name = method.__name__
        raise UserError(
            f"{name}({', '.join(given)}, ...) is built as {name}({', '.join(expected)}, *, ...): make all other parameters "
            "keyword-only, and set takes_teacher where it takes a teacher"
        )
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    for name in method.init_args:
        if name not in ("temperature", "bias") or not (takes_any or name in keywords):
            raise UserError(f"{method.__name__}.init_args: {name!r} is not a keyword-only parameter called temperature or bias")


POSITIVE = ("temperature", "tau", "max_scale", "epsilon")
"""Arguments of methods, alone or at the end of a name, that divide or are divided by."""


def check_positive(args: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError if an argument of a method that must be above 0 is a number that is not.

    Args:
        args: arguments by name.
        where: what stands before a name in the message.

    Example:
        >>> check_positive({"ssl_temperature": 0.1, "hardness": 0.0, "learn_temperature": False})
    """
    for name, value in args.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name.endswith(POSITIVE) and is_number and not 0 < value < math.inf:
            raise UserError(f"{where}{name} is {value:g}: give a number above 0")


def _shape(view: Tensor | Features | ImagePatches) -> tuple[int, ...]:
    if isinstance(view, ImagePatches):
        return (*view.pixels.shape[1:], view.kept.shape[1])
    return tuple((view.rows if isinstance(view, Features) else view).shape[1:])


def _joined(inputs: Sequence[Any]) -> Input:
    if len(inputs) == 1:
        only: Input = inputs[0]
        return only
    if isinstance(inputs[0], Features):
        return Features(torch.cat([features.rows for features in inputs]))
    if isinstance(inputs[0], ImagePatches):
        pixels, kept = (torch.cat([getattr(images, name) for images in inputs]) for name in ("pixels", "kept"))
        return ImagePatches(pixels, kept, inputs[0].patches)
    return torch.cat(list(inputs))
