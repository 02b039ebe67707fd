"""The contract of every method: encode, loss, commit.

`encode` is all the expensive work per sample; `loss` sees the rows of all processes, is cheap and changes nothing; `commit` is
the one place where state other than weights moves. Because `loss` is pure, one process and many give the same gradient.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmcl.encoders.tower import Tower
from mmcl.errors import UserError
from mmcl.types import Batch, Embeddings, Features, LossFacts, LossOutput, RunFacts, Tokens, Views


class Method(nn.Module):
    """Base of all methods.

    Attributes:
        views: view name -> name of the tower that encodes it; of the class, or of the instance where arguments decide.
        embedding: what a trained model gives its users: the "projection" or the "features" before the head.
        unit_rows: whether the loss is one of cosines, and the rows are of unit length.
        max_log_scale: logarithm of the largest inverse temperature, where `commit` keeps it below one.
        positives: which rows belong together, as `Embeddings.ids`: those with equal "ids" or those with equal "labels".
        init_args: which of its keyword-only arguments, "temperature" and "bias", are taken from the model that `init` of a
            configuration names, where the configuration does not give them.
        takes_teacher: whether it is built as `Method(towers, teacher, ...)`, with the image tower of the model that `teacher`
            of a configuration names, or None where it names none.
        test_args: arguments that bring it down to the size of a test, for `mmcl.testing.check_method`.

    Raises:
        UserError: when a class is defined that cannot be built so.
    """

    views: Mapping[str, Literal["image", "text"]]
    embedding: ClassVar[Literal["projection", "features"]]
    unit_rows: ClassVar[bool] = True
    positives: ClassVar[Literal["ids", "labels"]] = "ids"
    max_log_scale: float | None = None
    init_args: ClassVar[tuple[str, ...]] = ()
    takes_teacher: ClassVar[bool] = False
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
                raise UserError(
                    f"{type(self).__name__} has no use for the {name} tower: remove `{name}:` from the configuration"
                )
        widths = {name: towers[name].embed_dim for name in towers}
        if len(set(widths.values())) > 1:
            raise UserError(f"the towers' embeddings differ in width: {widths}; set the same embed_dim in both heads")
        self.towers = towers

    def tower(self, view: str) -> Tower:
        """The tower that encodes a view."""
        return self.towers[self.views[view]]  # type: ignore[return-value]

    @property
    def loss_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters on which `loss` may depend besides the rows: not those of `encode`, towers and predictor."""
        encoding = ("towers.", "predictor.")
        return [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(encoding)]

    def configure(self, facts: RunFacts) -> None:
        """Called once, on a method just built, before the first step; sets what depends on the size or length of the run."""
        return

    def describe(self, global_batch: int) -> LossFacts:
        """Returns properties of the loss known before training, for a batch of `global_batch` pairs with different ids."""
        return LossFacts()

    def encode(self, views: Views) -> dict[str, Tensor]:
        """Embeds every view: name -> rows [b, D]. A method may add rows under other names, such as those of a teacher."""
        return self.embed(self.towers, views, unit=self.unit_rows)

    def embed(self, towers: nn.ModuleDict, views: Views, *, unit: bool = True) -> dict[str, Tensor]:
        """Every view through its tower: name -> rows [b, D], of unit length or of their own.

        Images of one tower and one shape share a pass (and its batch norm); texts, each padded to its own length, do not.
        """
        passes: dict[Any, list[str]] = {}
        for name, view in views.items():
            passes.setdefault((self.views[name], name if isinstance(view, Tokens) else _shape(view)), []).append(name)
        rows: dict[str, Tensor] = {}
        for (tower, _), names in passes.items():
            outputs = towers[tower](_joined([views[name] for name in names]), unit=unit).chunk(len(names))
            rows.update(zip(names, outputs, strict=True))
        return rows

    def forward(self, views: Views, *, frozen_only: bool = False) -> Mapping[str, Tensor | Tokens | Features]:
        """`encode`; with `frozen_only`, the views again, those of frozen encoders replaced by their features.

        Both through the one call that a wrapper of the method (DDP, FSDP, mixed precision) sees.
        """
        return self._encode_frozen(views) if frozen_only else self.encode(views)

    def _encode_frozen(self, views: Views) -> Views:
        towers = {name: self.tower(name) for name in views}
        return {name: towers[name].features(view) if towers[name].frozen else view for name, view in views.items()}

    @abstractmethod
    def loss(self, embeddings: Embeddings, batch: Batch) -> LossOutput:
        """This process's share of the loss of the global batch. Changes no state."""

    def commit(self, embeddings: Embeddings, batch: Batch) -> None:
        """Called once after every optimiser step; moves state other than weights."""
        return

    @property
    def logit_scale(self) -> Tensor | None:
        """Inverse temperature, scalar, positive; None where the loss has none."""
        return None

    @property
    def classes(self) -> int | None:
        """How many classes a classifier tells apart; None for a method that knows no classes."""
        return None

    @property
    def logit_bias(self) -> Tensor | None:
        """Bias added to the logits, a scalar; None for softmax methods."""
        return None


def _check_signature(method: type[Method]) -> None:
    """Raises UserError where the engine could not build a method, or not give it what it asks for."""
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


def _shape(view: Tensor | Features) -> tuple[int, ...]:
    return tuple((view.rows if isinstance(view, Features) else view).shape[1:])


def _joined(inputs: Sequence[Any]) -> Tensor | Tokens | Features:
    if len(inputs) == 1:
        only: Tensor | Tokens | Features = inputs[0]
        return only
    if isinstance(inputs[0], Features):
        return Features(torch.cat([features.rows for features in inputs]))
    return torch.cat(list(inputs))
