"""`mmcl index`: an index of images on disk that keeps up with its collection."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from mmcl.cli.arguments import form_of
from mmcl.cli.exit import end_partly
from mmcl.cli.help import print_help
from mmcl.cli.index_care import (
    SHOWN,
    calibrate,
    export,
    import_,
    need_lancedb,
    open_index,
    optimize,
    recall,
    restore,
    verify,
    versions,
)
from mmcl.cli.options import RARE, Device, Json
from mmcl.cli.output import say, show
from mmcl.cli.parse import asks_for_help, parse_call
from mmcl.errors import UserError, unknown_name
from mmcl.files.atomic import check_folder
from mmcl.terminal import counted, shortened, terminal_width

_LEAST_SECONDS = 2.0


def index(words: Sequence[str]) -> None:
    """Runs the verb that the words name. Raises UserError as the verb does."""
    first, *rest = words or [""]
    if asks_for_help(words) and first not in VERBS:
        print_help(form_of(keep_up), "mmcl index")
        return
    if first not in VERBS:
        raise (
            unknown_name("verb", first, VERBS, where="mmcl index")
            if first
            else UserError(f"mmcl index needs a verb: {', '.join(VERBS)}")
        )
    parse_call(VERBS[first], rest, prog=f"mmcl index {first}")()


def keep_up(
    verb: Literal[
        "build",
        "sync",
        "status",
        "verify",
        "optimize",
        "recall",
        "calibrate",
        "versions",
        "restore",
        "export",
        "import",
    ],
    index: str,
    /,
) -> None:
    """Keep an index of images on disk up to date, and look after it.

    Examples:
        mmcl index build photos/ --out photos.mmcl --model runs/clip_emoji
        mmcl index sync photos.mmcl
        mmcl search photos.mmcl "a crying face"

    It needs the extra `index`. Every verb but build and import takes the folder of an index.

    Args:
        verb: One of build, sync, status, verify, optimize, recall, calibrate, versions, restore, export and import; each has
            a help: mmcl index build --help.
        index: A folder made by `mmcl index build`.
    """
    VERBS[verb](index)


def build(
    data: str,
    /,
    *,
    out: str,
    model: str,
    columns: Path | None = None,
    dim: Annotated[int | None, RARE] = None,
    dtype: Literal["float32", "float16", "none"] = "float32",
    narrow: Annotated[Literal["int8", "binary"] | None, RARE] = None,
    replace: bool = False,
    device: Device = None,
    json: Json = False,
) -> None:
    """Embed a collection into an index; one that was killed goes on where it was.

    Examples:
        mmcl index build photos/ --out photos.mmcl --model runs/clip_emoji

    Images that cannot be read are rows of the index too, so that they are not tried again before they change; `mmcl index
    status` lists them.

    Args:
        data: A folder or a table of images.
        out: The folder of the index.
        model: A run directory, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        columns: A table of your own columns, to filter and sort by. Its column `image` names images relative to the folder.
        dim: Width: only the first columns of the vectors, scaled to unit length. For a model trained with train.matryoshka.
        dtype: Type of the vectors on disk. float16 halves them and changes some scores by 1e-3; none keeps only narrow rows.
        narrow: Compare a byte (int8) or a bit (binary) of each number, in 1/4 or 1/32 of the memory. The vectors of the best
            are then read from the disk and compared; `mmcl index recall` measures what is missed.
        replace: Build anew over an index of another model or other data.
        json: Print JSON instead of text. It is {"index": ..., "images": ..., "bad": ..., "seconds": ...}.
    """
    need_lancedb(out)
    if "://" not in out:
        check_folder(Path(out), flag="--out")
    from mmcl.interop.available import check_available
    from mmcl.interop.load import load_model
    from mmcl.search import Index
    from mmcl.search.building import lasting

    Index.check_place(out)
    check_available(model)
    loaded = load_model(model, device=device)
    started = time.perf_counter()
    options = {"model_name": lasting(model), "columns": columns, "replace": replace}
    made = Index.build(data, loaded, out=out, dim=dim, dtype=dtype, narrow=narrow, progress=True, **options)  # type: ignore[arg-type]
    seconds, bad = time.perf_counter() - started, made.bad
    if json:
        show(json_module.dumps({"index": out, "images": len(made), "bad": len(bad), "seconds": round(seconds, 2)}))
    else:
        say(f'{counted(len(made), "image")} in {out}, in {seconds:.1f} s; search it: mmcl search {out} "a red apple"')
    end_partly(bad)


def sync(
    index: str,
    /,
    *,
    verify: bool = False,
    allow_empty: bool = False,
    skip_unreadable: bool = False,
    watch: float | None = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Bring an index up to date with its files: new, changed, moved, removed.

    Examples:
        mmcl index sync photos.mmcl

    Only content that the index does not have yet is encoded. If more than half of the images are gone, nothing is changed:
    their disk may not be mounted. A process that searches meanwhile is not disturbed.

    Args:
        index: A folder made by `mmcl index build`.
        verify: Read every file. Otherwise one whose size and times are as before is taken to be the same.
        allow_empty: Go on although more than half of the images are gone.
        skip_unreadable: Leave the rows of folders that cannot be read as they are.
        watch: Look again every this many seconds, until Ctrl-C.
        json: Print JSON instead of text. It has the counts new, changed, moved, copied, touched, gone, same, bad and encoded.
    """
    if watch is not None and not watch >= _LEAST_SECONDS:
        raise UserError(f"--watch is {watch}: give {_LEAST_SECONDS:g} seconds or more")
    with open_index(index, mode="w", device=device) as opened:
        while True:
            report = opened.sync(
                verify=verify, allow_empty=allow_empty, skip_unreadable=skip_unreadable, progress=watch is None
            )
            if json:
                show(json_module.dumps(asdict(report)))
            elif watch is None or report.commits:
                say(f"{index}: {report.to_text()}")
            if watch is None:
                break
            time.sleep(watch)


def status(index: str, /, *, json: Json = False) -> None:
    """Say what is in an index, and which images could not be read.

    Examples:
        mmcl index status photos.mmcl

    Args:
        index: A folder made by `mmcl index build`.
        json: Print JSON instead of text.
    """
    opened = open_index(index)
    bad, store = opened.bad, opened.store
    about = store.table.about  # type: ignore[attr-defined]
    facts = {
        "images": len(opened),
        "unreadable": len(bad),
        "from": about.collection,
        "model": store.model_name or store.model[:12],
        "width": store.dim,
        "vectors": about.dtype,
        "answers": "exact" if store.exact else f"approximate ({store.narrow or store.approximate})",  # type: ignore[attr-defined]
        "match": "calibrated" if store.calibration else "not calibrated",
        "columns": ", ".join(store.kinds),
        "version": store.version,
    }
    if json:
        bad_rows = [{"name": one.name, "reason": one.reason} for one in bad]
        show(json_module.dumps(facts | {"bad": bad_rows}, ensure_ascii=False, indent=1))
        return
    for name, value in facts.items():
        say(f"{name:<12}{value if not isinstance(value, int) else format(value, ',')}")
    for one in bad[:SHOWN]:
        say(shortened(f"unreadable: {one.reason if one.name in one.reason else f'{one.name}: {one.reason}'}", terminal_width()))
    if len(bad) > SHOWN:
        say(f"... and {len(bad) - SHOWN:,} more (--json lists all)")


VERBS: dict[str, Callable[..., None]] = {
    "build": build,
    "sync": sync,
    "status": status,
    "verify": verify,
    "optimize": optimize,
    "recall": recall,
    "calibrate": calibrate,
    "versions": versions,
    "restore": restore,
    "export": export,
    "import": import_,
}
