"""Ways to run an embedding job: processes of this machine, of torchrun, or of a Ray cluster.

All of them call `ShardEncoder.fill`, so the files are the same. None needs the processes to talk to each other: a process that
is killed costs the shard that it was at, and whoever is left, or the next start, does it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mmcl.errors import UserError, how_to_install, unknown_name
from mmcl.logging import get_logger
from mmcl.progress import can_be_drawn, progress_bar
from mmcl.runs.embedding.job import EmbeddingJob, ShardEncoder
from mmcl.search.shards.files import Done, finish, open_shards, remove_damaged
from mmcl.search.shards.plan import PLAN, ShardPlan, read_plan
from mmcl.terminal import counted

logger = get_logger(__name__)

RUNNERS = ("local", "torchrun", "ray")

_START_METHOD = "spawn"
"""A fork would copy locks that threads hold."""
_MOST_WORKERS = 8
"""By default: each process has the model in memory."""
_START_SECONDS = 20.0
"""A worker imports torch and loads the model."""
_POLL_SECONDS, _LOG_SECONDS = 0.5, 60.0
_RAY_SETTINGS = {"RAY_raylet_start_wait_time_s": "180", "RAY_worker_niceness": "0"}
"""A node may be slow to start on a busy machine; and Ray's own niceness of 15 gives its workers a thirtieth of a busy core."""
_RAY_STORE_BYTES = 200 * 2**20
"""What goes through Ray's object store are numbers of shards."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """State of a folder when a process has nothing left to do.

    Attributes:
        plan: its plan.
        left: files that are not there, such as those of other processes.
        done: the list of a complete folder; None if files are left.
    """

    plan: ShardPlan
    left: int
    done: Done | None


def run_embedding_job(
    job: EmbeddingJob, runner: str | None = None, *, workers: int | None = None, verify: bool = False
) -> Outcome:
    """Does an embedding job, or what is left of it.

    Args:
        job: the job.
        runner: "local" starts processes here; "torchrun" is one of the processes that torchrun (or anything else that sets
            RANK and WORLD_SIZE) has started; "ray" uses the cluster in RAY_ADDRESS, else this machine. By default torchrun if
            it started this process, else local.
        workers: processes; by default, if that pays, one for each GPU, else for each core, at most 8 here; not with torchrun.
        verify: first read every file that is there, and do those again that are damaged.

    Raises:
        UserError: the data or the model cannot be used, the folder was begun with another plan or cannot be written, or Ray is
            not installed (extra `ray`).
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    runner = runner or ("torchrun" if launched else "local")
    if runner not in RUNNERS:
        raise unknown_name("runner", runner, RUNNERS, where="--runner")
    if runner == "torchrun":
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise UserError("--runner torchrun: start it by torchrun, as in `torchrun --nproc_per_node 2 -m mmcl embed ...`")
        if workers is not None:
            raise UserError("--workers is not used with torchrun, which says itself how many: --nproc_per_node")
    elif launched:
        raise UserError(f"--runner {runner}: torchrun has started this process; leave it out, or start without torchrun")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    if verify:
        _remove_damaged(job.folder, is_rank=runner == "torchrun")
    if runner == "torchrun":
        plan = _run_as_rank(job)
    else:
        plan = _run_locally(job, workers) if runner == "local" else _run_on_ray(job, workers)
    left = open_shards(job.folder, plan)
    return Outcome(plan, len(left), None if left else finish(job.folder, plan))


def _remove_damaged(folder: Path, *, is_rank: bool) -> None:
    """Removes damaged files; of a rank of torchrun, those that are its own to do."""
    if not (folder / PLAN).is_file():
        return
    plan = read_plan(folder)
    rank, world = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_rank else (0, 1)
    for name in remove_damaged(folder, plan, range(rank, plan.count, world)):
        logger.warning(f"{folder / name}: is damaged, and is written again")


def _run_as_rank(job: EmbeddingJob) -> ShardPlan:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    encoder = ShardEncoder(_on_own_gpu(job, int(os.environ.get("LOCAL_RANK", rank))))
    numbers = range(rank, encoder.plan.count, world)
    with _Progress(job, encoder.plan, numbers) as progress:
        encoder.fill(numbers, lambda number: progress.look())
    return encoder.plan


def _run_locally(job: EmbeddingJob, workers: int | None) -> ShardPlan:
    """This process is one of the workers, so it does what the others leave."""
    encoder = ShardEncoder(_on_own_gpu(job, 0))
    numbers = open_shards(job.folder, encoder.plan)
    with _Progress(job, encoder.plan, numbers) as progress:
        if workers is None and numbers:
            numbers, workers = numbers[1:], _workers_that_pay(job, encoder, numbers, progress)
        others = [_Worker(job, number, numbers) for number in range(1, min(workers or 1, len(numbers)))]
        try:
            encoder.fill(numbers, lambda number: progress.look())
            while any(other.is_running() for other in others):
                time.sleep(_POLL_SECONDS)
                progress.look()
        finally:
            for other in others:
                other.end()
        encoder.fill(numbers, lambda number: progress.look())  # those of a worker that was killed
    return encoder.plan


def _workers_that_pay(job: EmbeddingJob, encoder: ShardEncoder, numbers: Sequence[int], progress: _Progress) -> int:
    """Does the first shard. Returns the default number of workers; 1 if the rest takes less time than starting another."""
    begun = time.monotonic()
    written: list[int] = []
    encoder.fill(numbers[:1], written.append)
    progress.look()
    left = (time.monotonic() - begun) * (len(numbers) - 1)
    return 1 if written and left < _START_SECONDS else _default_workers(job)


class _Worker:
    """Another process that fills shards of a job."""

    def __init__(self, job: EmbeddingJob, place: int, numbers: Sequence[int]):
        context: Any = multiprocessing.get_context(_START_METHOD)
        self._said, theirs = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_work, args=(_on_own_gpu(job, place), list(numbers), theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """Ends the process if it still runs, and logs why it failed if it did."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
            return
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            logger.warning(f"a worker was ended by {signal.Signals(-code).name}; the others do its shards")
        elif code > 0:
            said = self._said.recv() if self._said.poll() else f"exit code {code}"
            logger.warning(f"a worker failed ({said}); the others do its shards")


def _work(job: EmbeddingJob, numbers: list[int], said: Connection) -> None:
    """A worker's process: it ends with its parent, which Ctrl-C reaches first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        encoder = ShardEncoder(job)
        encoder.fill(number for number in numbers if parent.is_alive())
    except UserError as error:
        said.send(str(error))
        raise SystemExit(1) from None


def _on_own_gpu(job: EmbeddingJob, number: int) -> EmbeddingJob:
    """The job with a GPU for a process of this machine, if the job leaves that open and there is one."""
    if job.device is not None or not torch.cuda.is_available():
        return job
    return replace(job, device=f"cuda:{number % torch.cuda.device_count()}")


def _default_workers(job: EmbeddingJob) -> int:
    if job.device is None and torch.cuda.is_available():
        return torch.cuda.device_count()
    if job.device not in (None, "cpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _run_on_ray(job: EmbeddingJob, workers: int | None) -> ShardPlan:
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError:
        raise UserError(f"--runner ray needs Ray: {how_to_install('ray')}") from None
    job = _from_anywhere(job)
    encoder = ShardEncoder(job)
    plan, numbers = encoder.plan, open_shards(job.folder, encoder.plan)
    if not numbers:
        return plan
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, workers)
    try:
        resources: dict[str, float] = ray.cluster_resources()
        on_gpu = plan.device == "cuda"
        size = workers or int(resources.get("GPU" if on_gpu else "CPU", 1))
        with _Progress(job, plan, numbers) as progress:
            rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
            filled = rows.map_batches(
                _RayWorker,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(size, len(numbers))),
                num_cpus=1,
                num_gpus=1 if on_gpu else 0,
            )
            for _ in filled.iter_rows():
                progress.look()
    finally:
        if is_ours:
            ray.shutdown()
    return plan


def _from_anywhere(job: EmbeddingJob) -> EmbeddingJob:
    """The job with absolute paths: actors run in a folder of Ray's."""

    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    data = job.data if job.data.path is None else replace(job.data, path=absolute(job.data.path))
    return replace(job, folder=job.folder.absolute(), model=absolute(job.model), data=data)


class _RayWorker:
    """An actor of Ray. It writes the shards itself and returns their numbers, so nothing large goes through Ray."""

    def __init__(self, job: EmbeddingJob):
        self._encoder = ShardEncoder(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._encoder.fill(int(number) for number in batch["number"])
        return batch


def _connect(ray: Any, workers: int | None) -> None:
    """Connects to the cluster in RAY_ADDRESS, or starts Ray on this machine."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="warning")
        return
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=_RAY_STORE_BYTES,
        logging_level="warning",
        log_to_driver=False,
    )


class _Progress:
    """How many samples of some shards are done, whoever does them: a bar, or without a terminal a line a minute."""

    def __init__(self, job: EmbeddingJob, plan: ShardPlan, numbers: Sequence[int]):
        self._folder = job.folder
        present = set(os.listdir(job.folder))
        self._open = {plan.file(number): len(plan.samples(number)) for number in numbers if plan.file(number) not in present}
        self._total = sum(self._open.values())
        self._done, self._begun, self._said = 0, time.monotonic(), time.monotonic()

    def __enter__(self) -> _Progress:
        self._bar = progress_bar(total=self._total, desc="embed", unit="sample")
        if self._open:
            logger.info(f"{counted(self._total, 'sample')} in {counted(len(self._open), 'shard')} to do")
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def look(self) -> None:
        """Counts the files that have come."""
        new = sum(self._open.pop(name) for name in set(os.listdir(self._folder)) & self._open.keys())
        self._done += new
        self._bar.update(new)
        now = time.monotonic()
        if not can_be_drawn() and now - self._said > _LOG_SECONDS and self._done:
            self._said = now
            speed = self._done / (now - self._begun)
            minutes = (self._total - self._done) / speed / 60
            logger.info(f"{self._done:,} of {counted(self._total, 'sample')}, {speed:,.0f} a second, {minutes:,.0f} min left")
