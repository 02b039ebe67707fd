"""`mmcl embed`: computation of embeddings of images, captions and classes: one file, or a folder of shards."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mmcl.cli.evaluate import load_cached
from mmcl.cli.exit import end_partly, refuse_all_bad
from mmcl.cli.options import RARE, Device, Json, NoCache, Root
from mmcl.cli.output import say
from mmcl.cli.sources import parse_source
from mmcl.errors import UserError
from mmcl.files.atomic import check_file
from mmcl.interop.available import check_available
from mmcl.terminal import counted

if TYPE_CHECKING:
    from mmcl.config import SourceConfig
    from mmcl.data.source import Source
    from mmcl.evaluate import CachedModel
    from mmcl.runs.embedding.job import EmbeddingJob
    from mmcl.types import BadSample

_SUFFIXES = (".parquet", ".csv", ".npy")
_SHARD_ROWS = 4096
_LISTED = 20
"""Bad samples of a folder that are listed; its files have them all."""


def embed(
    data: str,
    /,
    *,
    model: str = "runs/clip_emoji",
    out: Path,
    features: Annotated[bool, RARE] = False,
    dim: Annotated[int | None, RARE] = None,
    data_args: str = "{}",
    shard_rows: int | None = None,
    dtype: Annotated[Literal["float32", "float16"] | None, RARE] = None,
    verify: Annotated[bool, RARE] = False,
    runner: str | None = None,
    workers: int | None = None,
    root: Root = None,
    device: Device = None,
    json: Json = False,
    no_cache: NoCache = False,
) -> None:
    """Embed images, captions and classes into a file or a folder.

    Examples:
        mmcl embed photos/ --out photos.parquet
        mmcl embed photos/ --out shards/ --shard_rows 1000

    `mmcl eval` reads a file, and so does anything that reads parquet. Its columns: id, kind (image, text, class), label,
    name, embedding. A .csv has columns e0, e1, ... for the embedding; beside a .npy, photos.rows.csv has the columns but the
    embedding, in the order of its rows. Samples whose image cannot be read are listed, and the exit code is then 1.

    A folder gets a file for every 4,096 samples, each complete or absent: the same command again goes on where it was killed,
    also on several machines at once. Whoever computes them, and however often it was killed, the files are the same byte for
    byte. A sample that cannot be read is a row without an embedding and with the reason, so the numbering stays.

    Args:
        data: A path, or the name of a source. `mmcl list sources` lists them.
        model: A run, open_clip:ARCH/TAG or hf:ID. `mmcl list models` shows what can be loaded.
        out: A .parquet, .csv or .npy, or a folder. A job that was killed goes on only in a folder.
        features: Write what the encoder gives before the head. At its own length, and of the images alone.
        dim: Width: only the first columns of the embeddings, scaled to unit length. For a model trained with train.matryoshka.
        data_args: Arguments of the source, such as "{fold: test}".
        shard_rows: Samples in each file of a folder, 4096 by default. 67 MB hold 65,536 rows of 256 numbers.
        dtype: Type of the numbers in a folder, float32 by default. float16 halves the files and changes some scores by 1e-3.
        verify: First read every file of the folder, and write damaged ones again.
        runner: local, torchrun or ray, for the processes of a folder. By default torchrun if it started this one, else local.
            With ray (an extra), the cluster in RAY_ADDRESS, else this machine.
        workers: Processes that fill a folder. By default, if that pays, one for each GPU, else for each core, at most 8.
        json: Print JSON instead of text. It is {"file": ..., "rows": ...}, or of a folder {"folder": ..., "images": ..., ...}.
    """
    is_file = _is_file(out)
    if is_file:
        check_file(out, flag="--out", inputs=(data,))
    given = {"--shard_rows": shard_rows, "--dtype": dtype, "--verify": verify or None, "--runner": runner, "--workers": workers}
    if is_file and any(value is not None for value in given.values()):
        flag = next(flag for flag, value in given.items() if value is not None)
        raise UserError(f"{flag} is of a folder of shards, and --out {out} is a file; give a folder, or leave {flag} out")
    if not is_file and no_cache:
        raise UserError("--no_cache: a folder of shards uses no cache; leave it out, and give a new --out to encode again")
    if features and dim is not None:
        raise UserError("--dim is a width of embeddings, and --features are what comes before them: leave one out")
    check_available(model)
    if is_file:
        source = parse_source(data, data_args, flag="--data_args")
        _embed_into_file(source, root, out, lambda: load_cached(model, no_cache, device, dim), features, json)
        return
    from mmcl.runs.embedding.job import EmbeddingJob
    from mmcl.search.shards.plan import check_shard_folder

    check_shard_folder(out, flag="--out")
    job = EmbeddingJob(
        data=parse_source(data, data_args, flag="--data_args"),
        model=model,
        folder=out,
        shard_rows=_SHARD_ROWS if shard_rows is None else shard_rows,
        features=features,
        dim=dim,
        dtype=dtype or "float32",
        root=root,
        device=device,
    )
    _embed_into_folder(job, runner, workers, verify, json)


def _is_file(out: Path) -> bool:
    """True for a file, false for a folder of shards. Raises UserError for the name of a file of another kind."""
    if out.suffix.lower() in _SUFFIXES:
        return True
    if re.fullmatch(r"\.[A-Za-z]\w{0,6}", out.suffix) and not out.is_dir():
        raise UserError(f"--out {out}: give a file that ends in {' or '.join(_SUFFIXES)}, or a folder, without {out.suffix}")
    return False


def _embed_into_folder(job: EmbeddingJob, runner: str | None, workers: int | None, verify: bool, json: bool) -> None:
    from mmcl.runs.embedding.runners import run_embedding_job
    from mmcl.search.shards.files import bad_rows
    from mmcl.types import BadSample

    outcome = run_embedding_job(job, runner, workers=workers, verify=verify)
    plan, done, folder = outcome.plan, outcome.done, job.folder
    if done is None:
        said = f"{outcome.left:,} of {counted(plan.count, 'file')} left to the other processes; run it again if they are gone"
        say(json_module.dumps({"folder": str(folder), "left": outcome.left}) if json else f"{folder}: {said}")
        return
    bad = [BadSample(row, name, reason) for row, name, reason in bad_rows(folder, plan, _LISTED)]
    if done.bad == done.images + done.texts:
        refuse_all_bad(bad, len(bad))
    counts = {"images": done.images, "texts": done.texts, "bad": done.bad, "files": len(done.files)}
    texts = f" and {counted(done.texts, 'text')}" if done.texts else ""
    complete = f"{counted(done.images, 'image')}{texts} in {counted(len(done.files), 'file')} in {folder}, complete (done.json)"
    say(json_module.dumps({"folder": str(folder), **counts}) if json else complete)
    if done.bad > len(bad):
        say(f"{counted(done.bad, 'row')} without an embedding; the first {len(bad)}:", error=True)
    end_partly(bad)


def _embed_into_file(
    data: SourceConfig, root: str | None, out: Path, model: Callable[[], CachedModel], features: bool, json: bool
) -> None:
    from mmcl.runs.build_data import build_source

    source = build_source(data, root, "data")
    rows, bad = _written(out, source, model(), features)
    say(json_module.dumps({"file": str(out), "rows": rows}) if json else f"{counted(rows, 'row')} in {out}")
    end_partly(bad)


def _written(out: Path, source: Source, model: CachedModel, features: bool) -> tuple[int, list[BadSample]]:
    """Returns the number of rows, and the unreadable samples. Raises UserError if no sample is readable."""
    import numpy as np

    from mmcl.data.derived.subset import Subset
    from mmcl.data.images.image_cache import unreadable
    from mmcl.evaluate.embedding_file import write_embeddings

    try:
        return write_embeddings(out, source, model, features=features), []
    except UserError:
        bad = unreadable(source, getattr(model.model, "preprocess", None))
        refuse_all_bad(bad, len(source))
        if not bad:
            raise
        good = np.setdiff1d(np.arange(len(source)), [one.index for one in bad])
        return write_embeddings(out, Subset(source, good), model, features=features), bad
