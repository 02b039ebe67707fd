"""All flags of `mmcl` with types and defaults, one per line, because scripts of users depend on them.

python -m tests.cli.flags > tests/cli/golden_flags.txt
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, get_args, get_origin, get_type_hints

from mmcl.cli import data
from mmcl.cli.evaluate import evaluate_one, evaluate_run, evaluate_suite
from mmcl.cli.main import _VERBS
from mmcl.config import Config

FORMS: dict[str, Callable[..., object]] = {
    **{f"mmcl {verb}": form for verb, form in _VERBS.items() if verb not in ("eval", "data")},
    "mmcl eval": evaluate_run,
    "mmcl eval knn": evaluate_one,
    "mmcl eval suite": evaluate_suite,
    **{f"mmcl data {verb.__name__}": verb for verb in (data.index, data.verify, data.stats, data.preview)},
}
"""By command, the function or the class from whose signature its parser is made; `mmcl eval knn` stands for every evaluator."""


def flags_of(form: Callable[..., object]) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each argument; a positional one has its name in angle brackets."""
    for name, parameter in inspect.signature(form).parameters.items():
        kind = re.sub(r"^Positional\[(.*)\]$", r"\1", str(parameter.annotation))
        is_flag = kind == parameter.annotation
        default = "required" if parameter.default is inspect.Parameter.empty else repr(parameter.default)
        name = f"no_{name}" if parameter.default is True else name  # the flag that changes it
        yield f"--{name.replace('_', '-')}" if is_flag else f"<{name}>", spelt_out(kind, form), default


def spelt_out(kind: str, form: Callable[..., object]) -> str:
    """An annotation without names of its module for other annotations."""
    alias = vars(sys.modules[form.__module__]).get(kind)
    if alias is None or isinstance(alias, type):
        return kind
    plain = get_args(alias)[0] if get_origin(alias) is Annotated else alias
    return plain.__name__ if isinstance(plain, type) else re.sub(r"\b(typing|pathlib)\.", "", str(plain))


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, type and default of each setting; a component's arguments are one mapping, as in its YAML."""
    kinds = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        name, kind = f"{prefix}{field.name}", kinds[field.name]
        nested = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and dataclasses.is_dataclass(part)]
        if nested and get_origin(kind) not in (dict, tuple):
            yield from settings_of(nested[0], f"{name}.")
            continue
        made = "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())
        yield f"--{name}", str(field.type), made if field.default is dataclasses.MISSING else repr(field.default)


def listing() -> str:
    """The golden file."""
    lines = [
        f"{command}  {name}  {kind}  {default}" for command, form in FORMS.items() for name, kind, default in flags_of(form)
    ]
    lines += [f"mmcl train  {name}  {kind}  {default}" for name, kind, default in settings_of(Config)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(listing())
