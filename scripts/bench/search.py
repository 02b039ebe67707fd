"""Time and memory of a search index, next to numpy, faiss and LanceDB.

Cases are named as they are printed, and take other sizes:
`query 100000x512`: rows x width; one query of an index in memory, from its vector to ten hits, encoding not counted. Beside it
numpy's product and argpartition, faiss's flat index, and a flat search of LanceDB.
`batch 100000x512`: the same for 100 queries at a time, per query.
`duplicates 100000x256`: groups of near duplicates; beside it the products of all pairs of blocks alone.
`open 1000000x256`: an index on disk; its memory beside that of its vectors, and the time until the first answer beside that of
reading the vectors alone. Another process has used as much memory just before, as a virtual machine asks its host for what has
long been free: that can take ten seconds a GB, whoever reads.
`sync 100000`: files; a sync where nothing has changed, the listing of the folder included.
`build 20000`: small JPEG files; images a second, and processor time of one, beside a plain loop of the model over a DataLoader.
The loop makes no small pictures, and neither hashes nor keeps anything; files of this size are their own small pictures.
`narrow 100000x512`: one query of an index on disk with narrow rows, whose vectors are read from the disk for the best hundred;
beside it the exact query, and faiss's index of the same kind, which has the vectors in memory.
`page 100000x512`: an index behind the page; the 95th percentile of answers to 50 clients at once, beside the median of one.

Every case is measured in a process of its own, its sides in turn, and each value is the median over the rounds. Exact sides
must find the same, or the bench stops.

python scripts/bench/search.py --cases "query 20000x256" "duplicates 4000x64" --json search.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import page as clients
import torch
from narrow import narrow
from plain_loop import plain_loop, processor_seconds, tiny, write_images
from side_by_side import Row, as_line, peak_memory, row, write_json
from vectors import Given, Run, clustered, fill, in_turn, nearest_by_numpy, parts

USUAL = [
    "query 100000x512",
    "batch 100000x512",
    "duplicates 100000x256",
    "open 1000000x256",
    "sync 100000",
    "build 20000",
    "narrow 100000x512",
    "page 100000x512",
]
K = 10
QUERIES = 100
_USE = "import sys, numpy; numpy.ones(int(sys.argv[1]), numpy.float32)"
_LOAD = f"""import subprocess, sys, time, numpy
subprocess.run([sys.executable, "-c", {_USE!r}, sys.argv[2]], check=True)
start = time.perf_counter()
numpy.load(sys.argv[1])
print('{{"time": %f}}' % (time.perf_counter() - start))"""


def flat(vectors: np.ndarray) -> Any:
    """faiss's exact index, or None without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def lance_table(vectors: np.ndarray, folder: str) -> Any:
    """A table of LanceDB without an index, or None without lancedb."""
    try:
        import lancedb
    except ImportError:
        return None
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return lancedb.connect(folder).create_table("rows", pa.table({"row": np.arange(len(vectors)), "vector": column}))


def require_equal(case: str, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise SystemExit(f"{case}: not the same hits: {found} and {expected}")


def query(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    from mmcl.data.sample import Sample
    from mmcl.search import Index
    from mmcl.search.memory_store import MemoryStore

    vectors, asked = clustered(rows, width), clustered(64, width, seed=1)
    model = Given()
    samples = [Sample(str(number), None) for number in range(rows)]
    index = Index(MemoryStore(samples, vectors, vectors[:0], model="given"), model)
    number = iter(range(10**9))

    def ask() -> np.ndarray:
        one: np.ndarray = asked[next(number) % len(asked)]
        return one

    def ours() -> list[int]:
        model.query = ask()
        return [int(hit.name) for hit in index.search("x", top_k=K)]

    def by_numpy() -> list[int]:
        return nearest_by_numpy(vectors, ask(), K)

    sides: dict[str, Run] = {"mmcl": ours, "numpy": by_numpy}
    faiss_index = flat(vectors)
    if faiss_index is not None:
        sides["faiss"] = lambda: faiss_index.search(ask()[None], K)[1][0].tolist()
    with tempfile.TemporaryDirectory() as folder:
        table = lance_table(vectors, folder)
        if table is not None:

            def by_lance() -> list[int]:
                found = table.search(ask()).distance_type("dot").select(["row", "_distance"]).limit(K).to_arrow()
                numbers: list[int] = found["row"].to_pylist()
                return numbers

            sides["lancedb"] = by_lance
        for side in sides.values():
            number = iter([5])
            found = side()
            number = iter([5])
            require_equal(case, found, by_numpy())
        number = iter(range(10**9))
        times = in_turn(sides, 20 * rounds)
    return [row(case, "time", "ms", 1e3 * times["mmcl"], peer, 1e3 * times[peer]) for peer in times if peer != "mmcl"]


def batch(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    from mmcl.core.nearest import nearest

    vectors, asked = clustered(rows, width), clustered(QUERIES, width, seed=1)
    keys, queries = torch.from_numpy(vectors), torch.from_numpy(asked)
    sides: dict[str, Run] = {"mmcl": lambda: nearest(queries, keys, K)[1].tolist()}
    faiss_index = flat(vectors)
    if faiss_index is None:
        return [row(case, "time a query", "ms", 1e3 * in_turn(sides, rounds)["mmcl"] / QUERIES)]
    sides["faiss"] = lambda: faiss_index.search(asked, K)[1].tolist()
    require_equal(case, sides["mmcl"](), sides["faiss"]())
    times = in_turn(sides, rounds)
    return [row(case, "time a query", "ms", 1e3 * times["mmcl"] / QUERIES, "faiss", 1e3 * times["faiss"] / QUERIES)]


def duplicates(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    from mmcl.search.duplicates import near_groups

    vectors = torch.from_numpy(clustered(rows, width))
    vectors[rows // 2 : rows // 2 + rows // 20] = vectors[: rows // 20]
    every, block, memory = torch.arange(rows), 2048, torch.empty(2048, 2048)
    before = peak_memory()
    groups = len(near_groups(vectors, 0.97, every))
    grown = peak_memory() - before
    if groups < rows // 20:
        raise SystemExit(f"{case}: {groups} groups where {rows // 20} pairs are planted")

    def products() -> None:
        blocks = vectors.split(block)
        for number, one in enumerate(blocks):
            for other in blocks[number:]:
                torch.mm(one, other.T, out=memory.flatten()[: len(one) * len(other)].view(len(one), len(other)))

    times = in_turn({"mmcl": lambda: near_groups(vectors, 0.97, every), "products alone": products}, 1)
    return [
        row(case, "time", "s", times["mmcl"], "products alone", times["products alone"]),
        row(case, "extra memory", "MiB", grown),
    ]


def opened(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    from mmcl.search.lance_table import About, LanceTable

    with tempfile.TemporaryDirectory() as folder:
        fill(LanceTable.create(folder, About(model="given", dim=width)), rows, width)
        np.save(Path(folder, "vectors.npy"), np.concatenate(list(parts(rows, width))))
        ours = [sys.executable, sys.argv[0], "--cases", case, "--opened", folder]
        peer = [sys.executable, "-c", _LOAD, str(Path(folder, "vectors.npy")), str(rows * width)]
        runs, loads = zip(*[(_printed(ours), _printed(peer)) for _ in range(rounds)], strict=True)
    megabytes = rows * width * 4 / 2**20
    times = (statistics.median(run["time"] for run in each) for each in (runs, loads))
    return [
        row(case, "memory", "MiB", statistics.median(run["memory"] for run in runs), "vectors", megabytes),
        row(case, "first answer", "s", next(times), "numpy.load", next(times)),
    ]


def _printed(command: list[str]) -> dict[str, float]:
    """What a process prints as JSON."""
    printed: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return printed


def open_here(folder: str, rows: int, width: int) -> dict[str, float]:
    """Memory and seconds from opening an index to its first answer, in this process."""
    from mmcl.search import Index
    from mmcl.search.lance_table import About, LanceTable

    model = Given()
    model.query = clustered(1, width, seed=1)[0]
    with tempfile.TemporaryDirectory() as small:  # so that the code of the libraries is in memory
        fill(LanceTable.create(small, About(model="given", dim=width)), 100, width)
        Index.open(small, model).search("x", top_k=K)
    subprocess.run([sys.executable, "-c", _USE, str(rows * width)], check=True)
    before, start = peak_memory(), time.perf_counter()
    index = Index.open(folder, model)
    index.search("x", top_k=K)
    return {"time": time.perf_counter() - start, "memory": peak_memory() - before}


def synced(case: str, files: int, _: int, rounds: int) -> list[Row]:
    from mmcl.search import Index
    from mmcl.testing.patterns import PatternModel

    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place, "photos"), files, 8)
        time.sleep(3)  # until no file is as young as its row
        index = Index.build(Path(place, "photos"), PatternModel(), out=Path(place, "photos.mmcl"))
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            report = index.sync()
            seconds.append(time.perf_counter() - start)
            if report.commits or report.encoded or report.same != files:
                raise SystemExit(f"{case}: not the same: {report}")
    return [row(case, "time", "s", statistics.median(seconds))]


def built(case: str, files: int, _: int, rounds: int) -> list[Row]:
    import mmcl
    from mmcl.interop.model import Model

    model = mmcl.load_model("open_clip:ViT-B-32-quickgelu") if os.environ.get("MMCL_BENCH_LARGE") else tiny()
    assert isinstance(model, Model)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        write_images(folder, files, 128)
        (folder / "broken.jpg").write_bytes(b"no image")
        number = iter(range(1000))
        index = mmcl.Index.build(folder, model, out=Path(place, f"index{next(number)}"))
        if len(index) != files or len(index.bad) != 1:
            raise SystemExit(f"{case}: {len(index)} images and {len(index.bad)} bad ones")
        (folder / "broken.jpg").unlink()

        def ours() -> None:
            mmcl.Index.build(folder, model, out=Path(place, f"index{next(number)}"))

        peer, spent = "loop over a DataLoader", dict[str, list[float]]()

        def counted(name: str, run: Run) -> Run:
            def run_and_count() -> None:
                before = processor_seconds()
                run()
                spent.setdefault(name, []).append(processor_seconds() - before)

            return run_and_count

        sides = {"mmcl": ours, peer: lambda: plain_loop(model, folder)}
        times = in_turn({name: counted(name, run) for name, run in sides.items()}, max(1, rounds - 1))
    work = {name: 1e3 * statistics.median(seconds[1:]) / files for name, seconds in spent.items()}
    return [
        row(case, "throughput", "/s", files / times["mmcl"], peer, files / times[peer]),
        row(case, "processor", "ms", work["mmcl"], peer, work[peer]),
    ]


def page(case: str, rows: int, width: int, rounds: int) -> list[Row]:
    from mmcl.search.lance_table import About, LanceTable

    model = Given()
    model.query = clustered(1, width, seed=1)[0]
    with tempfile.TemporaryDirectory() as folder:
        fill(LanceTable.create(folder, About(model="given", dim=width)), rows, width)
        return clients.many_at_once(case, folder, model, rounds)


CASES: dict[str, Callable[[str, int, int, int], list[Row]]] = {
    "query": query,
    "batch": batch,
    "duplicates": duplicates,
    "open": opened,
    "sync": synced,
    "build": built,
    "narrow": narrow,
    "page": page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=USUAL, help="cases of any size; by default those of the table")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side; of a query, twenty times as many")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--opened", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = [re.fullmatch(rf"({'|'.join(CASES)}) (\d+)(?:x(\d+))?", case) for case in arguments.cases]
    for case, match in zip(arguments.cases, shapes, strict=True):
        if match is None:
            parser.error(f"{case!r} is not a case; write it like {', '.join(map(repr, USUAL))}")
    if arguments.opened or arguments.here:
        (match,) = shapes
        assert match is not None
        rows, width = int(match[2]), int(match[3] or 0)
        if arguments.opened:
            print(json.dumps(open_here(arguments.opened, rows, width)))
        else:
            print(json.dumps(CASES[match[1]](arguments.cases[0], rows, width, arguments.rounds)))
        return
    print(f"{'case':<28} {'measure':<12} {'mmcl':>10} {'peer':>10} {'unit':<4} {'ratio':>7}")
    table: list[Row] = []
    for case in arguments.cases:
        command = [sys.executable, sys.argv[0], "--here", "--cases", case, "--rounds", str(arguments.rounds)]
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in json.loads(finished.stdout.splitlines()[-1]):
            table.append(line)
            print(as_line(line), flush=True)
    write_json(arguments.json, "search", table)


if __name__ == "__main__":
    main()
