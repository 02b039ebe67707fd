"""The verbs of `mmcl`: their output as text and as JSON, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mmcl
from mmcl.cli.main import VERBS, main
from mmcl.config import load_config
from mmcl.encoders.tower import Tower
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config
from tests.narrow import of_type

LARGE = {"torch", "numpy", "torchvision", "timm", "open_clip", "transformers", "datasets", "sklearn", "matplotlib", "PIL"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    evaluation = ("--data.holdout", "0.3", "--evaluate", "[{name: retrieval, label: held_out}]")
    train(tiny_config(folder, run_dir, *evaluation, "--train.steps", "2"))
    return run_dir


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:  # type: ignore[type-arg]
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_classify(run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(folder / "red_tiny.png")
    words = ["classify", picture, "--labels", "red", "blue", "green", "--model", str(run_dir), "--top_k", "2"]
    (row,) = run_json(capsys, *words)
    assert row["image"] == picture
    assert len(row["labels"]) == 2
    assert row["labels"][0]["score"] >= row["labels"][1]["score"]
    assert main(words) == 0
    assert row["labels"][0]["label"] in capsys.readouterr().out


def test_classify_by_what_was_learned_from_labels(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images in a folder for each class; the classifier keeps the names."""
    for number, color in enumerate(("red", "green", "blue")):
        (tmp_path / "squares" / f"{color}s").mkdir(parents=True)
        for copy in range(4):
            picture = np.zeros((16, 16, 3), np.uint8)
            picture[..., number] = 150 + 30 * copy
            Image.fromarray(picture).save(tmp_path / "squares" / f"{color}s" / f"{copy}.png")
    path = tmp_path / "colors.yaml"
    path.write_text(
        "method: {name: supervised}\n"
        "image:\n"
        "  encoder: {name: small_cnn, args: {image_size: 16, channels: 3, feature_dim: 16}}\n"
        "  head: {name: mlp, args: {layers: 1, embed_dim: 3, final: bias}}\n"
        "optim: {lr: 1e-2}\n"
        "train: {batch_size: 12, steps: 20, threads: 1}\n"
    )
    run = str(tmp_path / "run")
    train(load_config(path, ["--data.train.path", str(tmp_path / "squares"), "--run_dir", run]))
    capsys.readouterr()
    pictures = [str(tmp_path / "squares" / f"{color}s" / "1.png") for color in ("green", "red")]
    rows = run_json(capsys, "classify", *pictures, "--model", run, "--top_k", "3")
    assert [row["labels"][0]["label"] for row in rows] == ["greens", "reds"]
    for row in rows:
        assert sum(label["score"] for label in row["labels"]) == pytest.approx(1)
    logits = mmcl.load_model(run).image_logits(pictures)[0].astype(np.float64)
    assert rows[0]["labels"][0]["score"] == pytest.approx(1 / np.exp(logits - logits[1]).sum(), rel=1e-5)


@pytest.mark.parametrize("dim", [[], ["--dim", "2"]], ids=["whole", "smaller width"])
def test_a_head_of_an_evaluation_classifies(
    dim: list[str], run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colors = ("red", "green", "blue")
    table = tmp_path / "asked.csv"
    pictures = [str(path) for path in sorted(folder.glob("*.png"))]
    rows = [[path, *(str(int(Path(path).name.startswith(color))) for color in colors)] for path in pictures]
    table.write_text("\n".join(",".join(row) for row in [["image", *colors], *rows]))
    data = ["--model", str(run_dir), "--data", str(table), "--data_args", f"{{target_columns: [{', '.join(colors)}]}}"]
    assert main(["eval", "prompt-pairs", *data, *dim, "--out", str(tmp_path / "report")]) == 0
    [head] = (tmp_path / "report").glob("head_prompt_pairs_*.safetensors")
    assert f"head     {head}" in capsys.readouterr().out
    words = ["classify", pictures[0], "--model", str(run_dir), "--head", str(head)]
    [found] = run_json(capsys, *words)
    assert sorted(one["label"] for one in found["labels"]) == sorted(colors)
    assert all({"yes", "score"} <= one.keys() for one in found["labels"])
    assert main([*words, "--out", str(tmp_path / "labels.csv")]) == 0
    assert (tmp_path / "labels.csv").read_text().startswith("image,label,score,yes\n")
    assert main([*words, "--labels", "a", "b"]) == 2
    assert "--head has classes of its own: remove --labels" in capsys.readouterr().err


def test_search_by_text_in_what_the_run_was_evaluated_on(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hits = run_json(capsys, "search", str(run_dir), "a red square", "--top_k", "3")
    assert len(hits) == 3
    assert {"name", "score", "caption"} <= hits[0].keys()
    assert hits[0]["score"] >= hits[-1]["score"]


def test_search_by_image_finds_itself(run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, index, sheet = folder / "blue_huge.png", tmp_path / "index", tmp_path / "found.png"
    words = [
        "search",
        str(run_dir),
        "--image",
        str(query),
        "--images",
        str(folder),
        "--save",
        str(index),
        "--picture",
        str(sheet),
    ]
    hits = run_json(capsys, *words)
    assert Path(hits[0]["name"]).name == query.name
    assert sheet.stat().st_size > 500
    assert run_json(capsys, "search", str(run_dir), "--image", str(query), "--images", str(index)) == hits


def test_search_for_texts(run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", str(run_dir), "--image", str(folder / "red_tiny.png"), "--images", str(folder), "--target", "texts"]
    assert all("square" in hit["caption"] for hit in run_json(capsys, *words))


def test_eval_repeats_the_report_of_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "eval", str(run_dir))
    assert rows == json.loads((run_dir / "report" / "metrics.json").read_text())


def test_eval_of_other_data(run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    words = ["eval", "retrieval", "--model", str(run_dir), "--data", str(folder), "--args", "{ks: [1, 2]}", "--out", str(out)]
    metrics = {row["metric"] for row in run_json(capsys, *words)}
    assert {"text_to_image_R@1", "text_to_image_R@2"} <= metrics
    assert "text_to_image_R@5" not in metrics
    assert (out / "report.html").exists()


def test_eval_at_a_smaller_width(run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cache, which keeps what was encoded at another width, is not mixed up."""
    words = ["eval", "retrieval", "--model", str(run_dir), "--data", str(folder), "--args", "{examples: 0}"]
    found = {}
    for dim in (None, "2", "16"):
        flags = [] if dim is None else ["--dim", dim]
        found[dim] = {row["metric"]: row["value"] for row in run_json(capsys, *words, *flags) if row["model"] == "trained"}
    assert found["16"] == found[None] != found["2"]


def test_embeddings_are_evaluated_as_the_model_is(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.parquet"
    assert main(["embed", str(folder), "--model", str(run_dir), "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    direct = run_json(capsys, "eval", "retrieval", "--model", str(run_dir), "--data", str(folder), "--args", "{examples: 0}")
    stored = run_json(capsys, "eval", "retrieval", "--embeddings", str(file))
    values = {row["metric"]: row["value"] for row in direct if row["model"] == "trained"}
    assert {row["metric"]: row["value"] for row in stored} == pytest.approx(values)
    assert main(["eval", "map", "--embeddings", str(file), "--out", str(tmp_path / "map")]) == 0
    assert any("map" in path.name for path in (tmp_path / "map").glob("*.png"))


def test_embeddings_in_every_format_are_the_same(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for features in ([], ["--features"]):
        for name in ("e.parquet", "e.csv", "e.npy"):
            assert main(["embed", str(folder), "--model", str(run_dir), "--out", str(tmp_path / name), *features]) == 0
        capsys.readouterr()
        table = pq.read_table(tmp_path / "e.parquet")
        expected = np.array(table["embedding"].to_pylist(), np.float32)
        columns = ["id", "kind", "label", "name"]
        csv, rows = (pyarrow.csv.read_csv(tmp_path / name) for name in ("e.csv", "e.rows.csv"))
        assert np.array_equal(np.load(tmp_path / "e.npy"), expected)
        numbers = [csv[f"e{number}"].to_numpy().astype(np.float32) for number in range(expected.shape[1])]
        assert np.array_equal(np.stack(numbers, axis=1), expected)
        assert csv.column_names == [*columns, *(f"e{number}" for number in range(expected.shape[1]))]
        assert rows.column_names == columns
        for column in ("kind", "name"):
            assert csv[column].to_pylist() == rows[column].to_pylist() == table[column].to_pylist()


def test_features_are_those_before_the_head(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.parquet"
    assert main(["embed", str(folder), "--model", str(run_dir), "--out", str(file), "--features"]) == 0
    table, model = pq.read_table(file), mmcl.load_model(str(run_dir), device="cpu")
    assert set(table["kind"].to_pylist()) == {"image"}
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    tower = of_type(Tower, model.towers["image"])
    assert rows.shape[1] == tower.encoder.feature_dim
    assert not np.allclose(np.linalg.norm(rows, axis=1), 1)
    with torch.inference_mode():
        projected = torch.nn.functional.normalize(tower.head(torch.from_numpy(rows)), dim=1).numpy()
    names = table["name"].to_pylist()
    assert np.allclose(projected, model.encode_image(names), atol=1e-5)
    capsys.readouterr()
    assert run_json(capsys, "eval", "map", "--embeddings", str(file)) is not None


def test_the_second_evaluation_encodes_nothing(
    run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMCL_CACHE", str(tmp_path / "cache"))
    words = ["eval", "retrieval", "--model", str(run_dir), "--data", str(folder), "--args", "{examples: 0}"]
    first = run_json(capsys, *words)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("mmcl.interop.model.Model._encode", refuse)
    assert run_json(capsys, *words) == first
    assert main([*words, "--no_cache"]) == 70
    assert "encoded again" in capsys.readouterr().err


def test_suite(run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(f"evaluate: [{{name: retrieval, label: squares, data: {{path: {folder}}}, args: {{examples: 0}}}}]")
    assert main(["eval", "suite", str(file), "--models", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    assert "retrieval: squares" in capsys.readouterr().out
    assert {"report.md", "report.html", "metrics.csv", "metrics.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_compare(run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run_dir), str(run_dir / "report" / "metrics.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["a"], printed["b"]) == (str(run_dir), str(run_dir / "report" / "metrics.json"))
    differences = printed["differences"]
    assert {one["metric"] for one in differences} >= {"text_to_image_R@1", "image_to_text_R@1"}
    assert all(one["difference"] == 0 and (one["low"] is None or one["low"] < 0 < one["high"]) for one in differences)
    words = ["compare", str(run_dir), str(run_dir), "--models", "untrained", "trained", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "B - A" in capsys.readouterr().out
    assert (tmp_path / "comparison.md").is_file()


def test_compare_shows_what_both_runs_found(folder: Path, tmp_path: Path) -> None:
    evaluation = f"[{{name: retrieval, label: squares, data: {{path: {folder}}}, args: {{examples: 0}}}}]"
    runs = [tmp_path / name for name in "ab"]
    for seed, run in enumerate(runs):
        train(tiny_config(folder, run, "--evaluate", evaluation, "--train.steps", "2", "--train.seed", str(seed)))
    words = ["compare", str(runs[0] / "report" / "metrics.json"), str(runs[1] / "report"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (shown["a"], shown["b"]) == (str(runs[0]), str(runs[1])), "the runs, whichever of their files is given"
    assert (tmp_path / "out" / "what_changed_squares.png").stat().st_size > 500
    assert "What changed: squares" in (tmp_path / "out" / "comparison.html").read_text()


def test_doctor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config(folder, folder)  # writes the file
    words = ["doctor", str(folder.parent / "tiny.yaml"), "--data.train.path", str(folder), "--train.batch_size", "8"]
    assert main([*words, "--processes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["global_batch"], found["share"], found["samples"]) == (8, 4, 25)
    assert main([*words, "--train.micro_batch", "9"]) == 0
    text = capsys.readouterr().out
    assert "8 = 1 x 8" in text
    assert "warning: train.micro_batch 9 has no effect" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["doctor", "{folder}/none.yaml"], "none.yaml"),
        (["doctor", "{folder}/../tiny.yaml", "--optim.rl", "3"], "did you mean --optim.lr?"),
        (["classify", "--labels", "a", "b"], "no image given"),
        (["classify", "{folder}/none.png", "--labels", "a", "b", "--model", "{run}"], "none.png"),
        (["classify", "{folder}/captions.csv", "--labels", "a", "b", "--model", "{run}"], "captions.csv"),
        (["classify", "{folder}/red_tiny.png", "--labels", "a", "a", "--model", "{run}"], "'a'"),
        (["classify", "{folder}/red_tiny.png", "--labels", "a", "b", "--model", "{run}", "--template", "x"], "template"),
        (["classify", "{folder}/red_tiny.png", "--labels", "a", "b", "--model", "runs/none"], "runs/none"),
        (["classify", "{folder}/red_tiny.png", "--model", "{run}"], "give --labels"),
        (["classify", "{folder}/red_tiny.png", "--template", "a {{}}", "--model", "{run}"], "--template needs --labels"),
        (["classify", "{folder}/red_tiny.png", "--labels", "a", "b", "--model", "open_clip:ViT-B-33"], "ViT-B-33"),
        (["classify", "{folder}/red_tiny.png", "--labels", "a", "--model", "torchvision:resnet18x"], "resnet18x"),
        (["search", "{run}"], "nothing to look for"),
        (["search", "{run}", "x", "--images", "{folder}/none"], "none"),
        (["search", "{run}", "x", "--top_k", "0"], "top_k"),
        (["compare", "{run}", "{folder}"], "no report here"),
        (["compare", "{run}", "{run}", "--models", "trained", "best"], "has no model 'best'"),
        (["eval", "{folder}"], "squares"),
        (["eval", "knn"], "needs --model and --data"),
        (["eval", "knn", "--model", "{run}"], "needs --data"),
        (
            ["eval", "retrieval", "--model", "{run}", "--data", "{folder}", "--dim", "17"],
            "dim is 17: give a whole number from 1",
        ),
        (["eval", "classification", "--model", "{run}", "--data", "{folder}", "--dim", "4"], "classification compares logits"),
        (["eval", "knn", "--embeddings", "e.parquet", "--dim", "4"], "remove --model, --data, --bank, --dim"),
        (["eval", "knn", "--model", "{run}", "--data", "{folder}"], "give --bank"),
        (["eval", "retrieval", "--model", "{run}", "--data", "{folder}", "--args", "{{kss: 1}}"], "kss"),
        (["eval", "retrieval", "--model", "{run}", "--data", "{folder}", "--args", "3"], "--args must be a mapping"),
        (["eval", "knn", "--embeddings", "{folder}/e.parquet", "--data", "x"], "replaces a model and data"),
        (["eval", "knn", "--bank_embeddings", "{folder}/e.parquet"], "goes with --embeddings"),
        (["eval", "knn", "--embeddings", "{folder}/e.parquet"], "from a .parquet file"),
        (["eval", "suite"], "no suite given"),
        (["eval", "suite", "{folder}/none.yaml"], "no such suite"),
        (["embed", "{folder}", "--model", "{run}", "--out", "{folder}/e.h5"], ".parquet or .csv or .npy"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], named: str, run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(run=run_dir, folder=folder) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert named in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Images that cannot be read among some that can."""
    pictures = tmp_path / "images"
    pictures.mkdir()
    for name in ("red_tiny.png", "blue_huge.png", "green_small.png"):
        (pictures / name).write_bytes((folder / name).read_bytes())
    (pictures / "document.jpg").write_bytes(b"%PDF-1.7")
    (pictures / "cut.png").write_bytes((folder / "red_huge.png").read_bytes()[:60])
    return {path.stem: path for path in sorted(pictures.iterdir())}


def test_classify_does_the_rest_and_lists_what_cannot_be_read(
    run_dir: Path, broken: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--labels", "red", "blue", "--model", str(run_dir), "--json"]
    given = [str(broken[name]) for name in ("red_tiny", "document", "blue_huge", "cut")] + [str(broken["cut"]) + ".none"]
    with pytest.raises(SystemExit) as stopped:
        main(["classify", *given, *words])
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert [row["image"] for row in json.loads(said.out)] == [given[0], given[2]]
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["left out"] * 3
    assert all(name in line for name, line in zip((given[1], given[3], given[4]), said.err.splitlines(), strict=True))
    assert main(["classify", given[0], given[2], *words]) == 0
    assert capsys.readouterr().out == said.out


def test_nothing_that_can_be_read_is_an_error(
    run_dir: Path, broken: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--labels", "red", "blue", "--model", str(run_dir), "--json"]
    assert main(["classify", str(broken["cut"]), str(broken["document"]), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_embed_writes_the_rest(
    run_dir: Path, broken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "e.parquet", broken["cut"].parent
    with pytest.raises(SystemExit) as stopped:
        main(["embed", str(folder), "--model", str(run_dir), "--out", str(file)])
    assert stopped.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    names = pq.read_table(file)["name"].to_pylist()
    assert [Path(name).name for name in names] == ["blue_huge.png", "green_small.png", "red_tiny.png"]


def test_search_finds_among_the_rest_and_saves_it(
    run_dir: Path, broken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(run_dir), "red", "--images", str(broken["cut"].parent), "--save", str(tmp_path / "index"), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3
    assert len(said.err.splitlines()) == 2
    assert len(run_json(capsys, "search", str(run_dir), "red", "--images", str(tmp_path / "index"))) == 3


def test_an_unreadable_query_is_refused_before_the_collection_is_embedded(
    run_dir: Path, broken: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for query in (str(broken["document"]), "none.png", str(run_dir)):
        assert main(["search", str(run_dir), "red", "--image", query, "--images", "nowhere"]) == 2
        assert query in capsys.readouterr().err


def test_what_only_tells_imports_no_large_library() -> None:
    """`import mmcl`, the lists of names and models, and the help of every verb."""
    telling = ["--version", "--help", "list", "list models", "list models ViT-B-32 --json", "config clip_emoji"]
    telling += [f"{verb} --help" for verb in [*VERBS, "eval knn", "eval suite", "eval mteb", "data stats"]]
    run_without_libraries(telling, code=0)


def test_a_model_that_cannot_be_had_is_refused_before_its_library_is_imported(tmp_path: Path) -> None:
    names = ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:hf-hub:a/b", "hf:a/b", "timm:resnet18", "timm:resnet18.a1_in1k")
    lines = [f"classify a.png --labels a b --model {name}" for name in names]
    lines += [f"{words} hf:a/b" for words in ("search cat", "embed a --out e.npy --model")]
    lines += ["train clip_finetune --data.train.path . --init hf:a/b", "eval geometry --data digits --model hf:a/b"]
    said = run_without_libraries(lines, code=2, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path)).splitlines()
    assert len(said) == len(lines)
    for line, error in zip(lines, said, strict=True):
        assert error.startswith(f"error: {line.split()[-1]}: HF_HUB_OFFLINE is set, and it is not in the cache; unset it")


def test_a_run_is_loaded_without_the_compiler_of_torch_and_without_what_it_does_not_use(run_dir: Path, folder: Path) -> None:
    """`bounded_build` watches every operation, for which torch would import its compiler: half of the time of a search."""
    lines = [f"search {run_dir} red --images {folder}", f"classify {folder}/red_tiny.png --labels red blue --model {run_dir}"]
    unused = LARGE - {"torch", "numpy", "PIL"} | {"torch._dynamo"}
    run_without_libraries(lines, code=0, libraries=unused)


def run_without_libraries(lines: Sequence[str], *, code: int, libraries: Collection[str] = LARGE, **environment: str) -> str:
    """Runs commands in one process, none of which imports a large library. Returns what they say on standard error."""
    libraries = set(libraries)
    script = (
        "import sys, mmcl; from mmcl.cli.main import main\n"
        "for line in sys.argv[1:]:\n"
        f"    assert main(line.split()) == {code}, line\n"
        f"    assert not {libraries!r} & sys.modules.keys(), (line, {libraries!r} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *lines], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
