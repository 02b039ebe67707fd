"""All flags of `mmcl` with types and defaults, one per line, because scripts of users depend on them.

python -m tests.cli.flags > tests/cli/golden_flags.txt
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator

from mmcl.cli.arguments import form_of
from mmcl.cli.data import VERBS as DATA_VERBS
from mmcl.cli.evaluate import evaluate_mteb, evaluate_one, evaluate_run, evaluate_suite
from mmcl.cli.index import VERBS as INDEX_VERBS
from mmcl.cli.main import VERBS
from mmcl.config.describe import all_settings

FORMS: dict[str, Callable[..., object]] = {
    **{f"mmcl {verb}": form for verb, form in VERBS.items() if verb not in ("eval", "data", "index")},
    "mmcl eval": evaluate_run,
    "mmcl eval knn": functools.partial(evaluate_one, "knn"),
    "mmcl eval suite": evaluate_suite,
    "mmcl eval mteb": evaluate_mteb,
    **{f"mmcl data {verb}": form for verb, form in DATA_VERBS.items()},
    **{f"mmcl index {verb}": form for verb, form in INDEX_VERBS.items()},
}
"""By command, the function from whose signature its parser is made; `mmcl eval knn` stands for every evaluator."""


def flags_of(form: Callable[..., object]) -> Iterator[tuple[str, str, str]]:
    """Name, type and default of each argument; a positional one has its name in angle brackets."""
    for one in form_of(form).arguments:
        default = "required" if one.default is inspect.Parameter.empty else repr(one.default)
        kind = (
            one.kind.__name__ if isinstance(one.kind, type) else re.sub(r"\b(typing|pathlib(\._local)?)\.", "", str(one.kind))
        )
        yield f"--{one.name}" if one.is_flag else f"<{one.name}>", kind, default


def settings() -> Iterator[tuple[str, str, str]]:
    """Dotted name, type and default of each setting; NAME and 0 stand for a name and a number of the user's."""
    for one in all_settings():
        made = one.field.default_factory
        default = one.field.default if made is dataclasses.MISSING else made()
        yield f"--{one.path}", str(one.field.type), "required" if default is dataclasses.MISSING else repr(default)


def listing() -> str:
    """The golden file."""
    lines = [
        f"{command}  {name}  {kind}  {default}" for command, form in FORMS.items() for name, kind, default in flags_of(form)
    ]
    lines += [f"mmcl train  {name}  {kind}  {default}" for name, kind, default in settings()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(listing())
