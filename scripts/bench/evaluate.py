"""Time and memory of evaluators, next to those of other toolkits.

Cases are named as they are printed, and take other sizes:
`retrieval 5000x25000x512`: images x captions x width, both directions, all metrics and intervals; beside it the scoring of
CLIP_benchmark, R@1, R@5 and R@10. 100000x100000x256 and, with --large, 200000x200000x256 would be a matrix of 40 and 160 GB.
`zero_shot 1000x100x7`: images x labels x templates from images to labels with a small CLIP of random weights; beside it the
pipeline of transformers, which takes one template at a time: it is run once for each, on some images, and its time multiplied.
`knn 60000x10000x128`: bank x queries x width; beside it scikit-learn's KNeighborsClassifier.

Every value is measured in a process of its own, mmcl and the other in turn, and is the median over the rounds. Memory is the
growth of the process's peak over the first run, inputs and imports not counted. Both must find the same, or the bench stops.

python scripts/bench/evaluate.py --cases "retrieval 1000x5000x512" "knn 6000x1000x128" --json evaluate.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from side_by_side import LONG, Case, Sides, add_arguments, compare, peak_memory, write_json

Numbers = dict[str, float]
USUAL = ["retrieval 5000x25000x512", "retrieval 100000x100000x256", "zero_shot 1000x100x7", "knn 60000x10000x128"]
LARGE = ["retrieval 200000x200000x256"]
PEERS = {
    "retrieval": "CLIP_benchmark recall_at_k",
    "zero_shot": "transformers zero-shot-image-classification",
    "knn": "scikit-learn KNeighborsClassifier",
}
BOTH = {"time": "s", "memory": "MiB"}
# The pipeline is timed on some images only, and says nothing of the memory.
MEASURES = {"retrieval": BOTH, "zero_shot": {"time": "s"}, "knn": BOTH}
KS = (1, 5, 10)
NEIGHBORS = 5
# Images on which the pipeline is timed, and those whose scores are compared.
TIMED, COMPARED = 20, 4
# A whole matrix of scores, and what comes of it, in bytes for every pair of rows.
PEER_BYTES = 16
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Side:
    """One side of a case.

    Attributes:
        run: what is timed.
        numbers: what it found, to be compared with what the other side found.
        factor: how many times longer the whole case takes than what is timed.
    """

    run: Callable[[], Any]
    numbers: Callable[[Any], Numbers]
    factor: float = 1.0


def retrieval(side: str, images: int, texts: int, width: int) -> Side:
    torch: Any = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, width, generator=generator), dim=1)
    owner = torch.arange(texts) * images // texts
    # Captions so near to their image that R@1 is neither 0 nor 1.
    text = torch.randn(texts, width, generator=generator).mul_(4 / width**0.5)
    for part in range(0, texts, 4096):
        text[part : part + 4096] += image[owner[part : part + 4096]]
        text[part : part + 4096] /= text[part : part + 4096].norm(dim=1, keepdim=True)
    (image[:64] @ image[:64].T).sum()  # the libraries' own buffers
    if side == "mmcl":
        importlib.import_module("scipy.special")
        evaluate: Any = importlib.import_module("mmcl.evaluate")
        ids = {"image_ids": torch.arange(images), "text_image_ids": owner}
        return Side(
            lambda: evaluate.retrieval(image, text, **ids, ks=KS),
            lambda report: {row.metric: row.value for row in report.metrics if "_R@" in row.metric},
        )
    toolkit: Any = importlib.import_module("clip_benchmark.metrics.zeroshot_retrieval")

    def run() -> Numbers:
        score = text @ image.t()
        positive = torch.zeros_like(score, dtype=bool)
        positive[torch.arange(len(score)), owner] = True
        directions = {"text_to_image": (score, positive), "image_to_text": (score.T, positive.T)}
        return {
            f"{name}_R@{k}": (toolkit.batchify(toolkit.recall_at_k, *both, 64, "cpu", k=k) > 0).float().mean().item()
            for k in KS
            for name, both in directions.items()
        }

    return Side(run, lambda found: found)


def save_clip(folder: str) -> None:
    """A small CLIP for images of 64 x 64 with random weights, as transformers saves one."""
    torch: Any = importlib.import_module("torch")
    hf: Any = importlib.import_module("transformers")
    backends: Any = importlib.import_module("tokenizers")
    clip_bpe = importlib.import_module("mmcl.encoders.tokenizers").clip_bpe
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    text = {**shape, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = {**shape, "image_size": 64, "patch_size": 16}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than at the start of a training, so that every word and every pixel shows in the scores.
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    backend = backends.Tokenizer.from_str(json.dumps(clip_bpe().to_json()["backend"]))
    begin, end = "<start_of_text>", "<end_of_text>"
    special = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    hf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=77, **special).save_pretrained(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)


def zero_shot(side: str, images: int, labels: int, templates: int) -> Side:
    rng = importlib.import_module("numpy").random.default_rng(0)
    picture_of = importlib.import_module("PIL.Image").fromarray
    pictures = [picture_of(pixels) for pixels in rng.integers(256, size=(images, 64, 64, 3)).astype("uint8")]
    names = [f"thing number {number}" for number in range(labels)]
    sentences = [f"a photo of a {{}} in style {number}." for number in range(templates)]
    importlib.import_module("torch").set_grad_enabled(False)

    def numbers(scored: dict[str, list[list[dict[str, Any]]]]) -> Numbers:
        rows = ((sentence, n, row) for sentence, every in scored.items() for n, row in enumerate(every[:COMPARED]))
        return {f"{sentence} {n} {one['label']}": one["score"] for sentence, n, row in rows for one in row}

    with tempfile.TemporaryDirectory() as folder:
        save_clip(folder)
        if side == "mmcl":
            mmcl: Any = importlib.import_module("mmcl")
            model = mmcl.load_model(f"hf:{folder}", device="cpu")
            # What is compared is one template at a time, as the pipeline takes them; what is timed is all of them together.
            return Side(
                lambda: mmcl.ZeroShotClassifier(model, names, sentences)(pictures),
                lambda _: numbers(
                    {s: mmcl.ZeroShotClassifier(model, names, s)(pictures[:COMPARED], top_k=None) for s in sentences}
                ),
            )
        hf: Any = importlib.import_module("transformers")
        pipeline = hf.pipeline("zero-shot-image-classification", model=folder, device="cpu")
    some = pictures[:TIMED]
    return Side(
        lambda: {s: pipeline(some, candidate_labels=names, hypothesis_template=s) for s in sentences},
        numbers,
        factor=images / len(some),
    )


def knn(side: str, bank: int, queries: int, width: int) -> Side:
    torch: Any = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(0)
    # Two classes and an odd number of neighbors: votes do not tie.
    center = torch.randn(2, width, generator=generator)
    label = torch.randint(2, (bank + queries,), generator=generator)
    rows = center[label] + 3 * torch.randn(bank + queries, width, generator=generator)
    bank_rows, bank_labels, query, truth = rows[:bank], label[:bank], rows[bank:], label[bank:]
    if side == "mmcl":
        evaluate: Any = importlib.import_module("mmcl.evaluate")
        return Side(
            lambda: evaluate.knn(bank_rows, bank_labels, query, truth, ks=(NEIGHBORS,)),
            lambda report: {"right": report[f"knn{NEIGHBORS}_top1"] * queries},
        )
    neighbors: Any = importlib.import_module("sklearn.neighbors")

    def run() -> Any:
        classifier = neighbors.KNeighborsClassifier(NEIGHBORS, metric="cosine", algorithm="brute")
        return classifier.fit(bank_rows.numpy(), bank_labels.numpy()).predict(query.numpy())

    return Side(run, lambda predicted: {"right": float((predicted == truth.numpy()).sum())})


CASES = {"retrieval": retrieval, "zero_shot": zero_shot, "knn": knn}


def parse(case: str) -> tuple[str, list[int]]:
    name, shape = case.split()
    return name, [int(size) for size in shape.split("x")]


def measure(case: str, side: str, repeats: int) -> dict[str, Any]:
    """One side of one case, in this process: {"time", "memory", "numbers"}, or {"missing": module}."""
    name, shape = parse(case)
    try:
        own = CASES[name](side, *shape)
    except ImportError as error:
        return {"missing": error.name}
    before = peak_memory()
    seconds = []
    for number in range(repeats):
        started = time.perf_counter()
        found = own.run()
        seconds.append((time.perf_counter() - started) * own.factor)
        if number == 0:
            memory = peak_memory() - before
        if seconds[0] > LONG:
            break
    return {"time": statistics.median(seconds), "memory": memory, "numbers": own.numbers(found)}


def as_case(case: str, memory_limit: float) -> Case:
    name, shape = parse(case)
    needed = PEER_BYTES * shape[0] * shape[1] / 2**30 if name == "retrieval" else 0.0
    return Case(case, MEASURES[name], PEERS[name], f"needs about {needed:.0f} GiB" if needed > memory_limit else "")


def require_equal(case: str, sides: Sides) -> None:
    if "peer" not in sides:
        return
    ours, theirs = (sides[side][0]["numbers"] for side in ("mmcl", "peer"))
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{case}: not the same numbers: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    worst = max(ours, key=lambda name: abs(ours[name] - theirs[name]))
    if abs(ours[worst] - theirs[worst]) > TOLERANCE * max(1, abs(theirs[worst])):
        raise SystemExit(f"{case}: {worst} differs: {ours[worst]} and {theirs[worst]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=USUAL, help="cases of any size; by default those of the table")
    parser.add_argument("--large", action="store_true", help=f"also {', '.join(LARGE)}: many minutes")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs per process; the first shows the memory")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB; other toolkits are skipped where they need more")
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.cases[0], arguments.side, arguments.repeats)))
        return
    for case in arguments.cases:
        if not re.fullmatch(rf"({'|'.join(CASES)}) \d+x\d+x\d+", case):
            parser.error(f"{case!r} is not a case; write it like {', '.join(map(repr, USUAL))}")
    cases = (as_case(case, arguments.memory) for case in [*arguments.cases, *(LARGE if arguments.large else [])])
    table = compare(cases, arguments, ["--repeats", str(arguments.repeats)], require_equal)
    write_json(arguments.json, "evaluate", table)


if __name__ == "__main__":
    main()
