"""Compilation of encoders by torch.compile, block by block and in place.

Blocks keep their parameters and names, so checkpoints and exports are those of any run, and blocks of one kind share code. Only
training is compiled: evaluations compute as the exported model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from mmcl.encoders.blocks import blocks
from mmcl.encoders.tower import TextEncoder, Tower
from mmcl.errors import UserError, first_line
from mmcl.methods.method import Method
from mmcl.terminal import counted
from mmcl.types import Tokens, Views

MULTIPLE = 8
"""Compiled encoders get texts padded to a multiple of this length, so that there are few shapes to compile."""

_MOST_SHAPES = 4096


class CompiledEncoders:
    """The encoders of a method, including those of teachers, with compiled blocks; an encoder without blocks as a whole.

    Every shape is compiled by itself, when it first occurs: code for shapes of any size would depend on which came first, and a
    resumed run would round differently. Dropout draws the masks that it draws without compilation, so that both passes of
    GradCache draw the same.

    Args:
        method: its encoders are compiled in place, until the exit of the context.
        backend: of `torch.compile`; the tests take a fast one.
    """

    def __init__(self, method: nn.Module, *, backend: Any = "inductor"):
        self._options: Any = {"backend": backend, "dynamic": False}
        if backend == "inductor":
            self._options["options"] = {"fallback_random": True}
        towers = {name.removeprefix("towers."): part for name, part in method.named_modules() if isinstance(part, Tower)}
        self._unused = {name: tower.encoder_name for name, tower in towers.items()}
        self._texts = [tower.encoder for tower in towers.values() if isinstance(tower.encoder, TextEncoder)]
        self._other: dict[nn.Module, Callable[..., Any] | None] = {}
        for name, tower in towers.items():
            for block in compiled_parts(tower):
                self._other[block] = block.__dict__.get("forward")
                block.forward = self._compiled(name, tower.encoder_name, block.forward)
        self._set_lengths(MULTIPLE)

    def __enter__(self) -> CompiledEncoders:
        self._settings = _dynamo_settings()
        self._settings.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let the encoders compute as before."""
        self._settings.__exit__(*error)
        self._swap()
        self._set_lengths(1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which the encoders compute as before."""
        self._swap()
        self._set_lengths(1)
        try:
            yield
        finally:
            self._swap()
            self._set_lengths(MULTIPLE)

    def check(self) -> None:
        """Raise UserError for an encoder whose blocks have not been called. Called after the first step."""
        if self._unused:
            name, encoder = min(self._unused.items())
            raise UserError(
                f"train.compile: the encoder {encoder} ({name}) takes the layers out of its blocks instead of calling them, so "
                "that they are not compiled; set it to false"
            )

    def _compiled(self, name: str, encoder: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(forward, **self._options)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._unused.pop(name, None)
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                where = f"the encoder {encoder} ({name})"
                raise UserError(f"train.compile: {where} cannot be compiled: {_why(error)}; set it to false") from error

        return call

    def _swap(self) -> None:
        """Exchange the functions that blocks have for the others."""
        for block, other in self._other.items():
            self._other[block] = block.__dict__.pop("forward", None)
            if other is not None:
                block.forward = other

    def _set_lengths(self, multiple: int) -> None:
        for encoder in self._texts:
            encoder.length_multiple = multiple


def compiled_parts(tower: Tower) -> list[nn.Module]:
    """Return the modules of a tower that `train.compile` compiles."""
    return blocks(tower.encoder) or [tower.encoder]


def compiled_in_words(method: Method) -> str:
    """Say what `train.compile` compiles of a method's encoders, and how it pads texts."""
    parts = []
    for name, tower in method.towers.items():
        found = blocks(tower.encoder)  # type: ignore[arg-type]
        parts.append(f"{counted(len(found), 'block')} of {name}" if found else f"{name} as a whole")
    padded = f"; texts are padded to multiples of {MULTIPLE} tokens" if "text" in method.towers else ""
    return ", ".join(parts) + padded


def lengthened(views: Views, method: Method) -> Views:
    """Pad texts as the encoder wants it, see `TextEncoder.length_multiple`, but not beyond its context length."""
    return {name: _lengthened(view, method.tower(name).encoder) for name, view in views.items()}


def _lengthened(view: Any, encoder: Any) -> Any:
    multiple = getattr(encoder, "length_multiple", 1)
    if multiple == 1 or not isinstance(view, Tokens):
        return view
    length = view.ids.shape[1]
    return view.lengthened(max(length, min(-(-length // multiple) * multiple, encoder.tokenizer.context_length)))


def check_compiler(device: torch.device | str) -> None:
    """Compile a small function for a device.

    Raises:
        UserError: this machine has no working compiler.
    """
    try:
        with _dynamo_settings():
            torch.compile(_trial, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # the compilers of the devices raise errors of their own
        needed = "a C++ compiler, such as g++" if torch.device(device).type == "cpu" else "Triton and a C compiler, such as gcc"
        raise UserError(f"train.compile needs {needed} ({_why(error)}): install it, or set train.compile to false") from error


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def _dynamo_settings() -> AbstractContextManager[object]:
    """Context in which no shape is silently left uncompiled, and DDP does not split blocks to overlap its communication."""
    import torch._dynamo

    patched: AbstractContextManager[object] = torch._dynamo.config.patch(
        recompile_limit=_MOST_SHAPES,
        accumulated_recompile_limit=_MOST_SHAPES,
        fail_on_recompile_limit_hit=True,
        optimize_ddp=False,
    )
    return patched


def _why(error: Exception) -> str:
    return " ".join(first_line(error).split())
