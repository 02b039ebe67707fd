"""`mmcl data curate`: from stored rows to the doubtful pairs, and to a run that leaves them out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import mmcl
from mmcl.cli.main import main
from mmcl.config import SourceConfig
from mmcl.runs.build_data import build_training_data
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config

NEAREST = 0.2
SWAPPED = {"blue_tiny": "yellow_huge", "green_huge": "black_tiny"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows which caption is whose."""
    right = make_folder(tmp_path_factory.mktemp("right") / "squares")
    return train(tiny_config(right, tmp_path_factory.mktemp("runs") / "tiny", "--train.steps", "40")).run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares, of which two pairs have each other's caption, one has a second caption, one has none, and one is broken."""
    folder = make_folder(tmp_path_factory.mktemp("data") / "squares")
    text = (folder / "captions.csv").read_text()
    for one, other in SWAPPED.items():
        text = text.replace(f"{one}.png", "-").replace(f"{other}.png", f"{one}.png").replace("-,", f"{other}.png,")
    text += "red_tiny.png,a second caption\nbroken.png,a square that is broken\nbare.png,\n"
    (folder / "captions.csv").write_text(text)
    (folder / "broken.png").write_bytes(b"no image")
    shutil.copy(folder / "red_huge.png", folder / "bare.png")
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rows") / "shards"
    job = EmbeddingJob(data=SourceConfig(path=str(folder)), model=str(run_dir), folder=out, shard_rows=8)
    run_embedding_job(job, workers=1)
    return out


def curated(folder: Path, shards: Path, out: Path, *flags: str) -> list[dict[str, Any]]:
    assert main(["data", "curate", str(folder), "--rows", str(shards), "--out", str(out), *flags]) == 0
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    return list(pq.read_table(out).to_pylist())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_doubtful_pairs_are_those_of_the_model_itself(
    suffix: str, folder: Path, run_dir: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = curated(folder, shards, tmp_path / f"found{suffix}", "--nearest", str(NEAREST))
    model, source = mmcl.load_model(run_dir), mmcl.open_source("auto", str(folder))
    samples = [source[index] for index in range(len(source))]
    good = [row for row, sample in enumerate(samples) if "broken" not in sample.name]
    images = model.encode_image([samples[row].required_image() for row in good])
    pairs = [(row, text) for row, sample in enumerate(samples) for text in sample.captions]  # that of no image is a rival, too
    score = dict(zip(good, images @ model.encode_text([text for _, text in pairs]).T, strict=True))
    expected = []
    for text, (row, caption) in enumerate(pairs):
        if row not in score:
            continue
        others = [other for other, (image, _) in enumerate(pairs) if image != row]
        caption_rank = 1 + int((score[row][others] > score[row][text]).sum())
        image_rank = 1 + sum(score[other][text] > score[row][text] for other in good if other != row)
        if caption_rank > NEAREST * (len(others) + 1) or image_rank > NEAREST * len(good):
            name = Path(str(samples[row].image)).name
            place = (caption_rank, len(others) + 1, image_rank, len(good))
            expected.append((float(score[row][text]), name, caption, *place))
    planted = {f"{name}.png" for pair in SWAPPED.items() for name in pair}
    assert planted <= {name for _, name, *_ in expected}
    assert len(expected) < 10
    found = [tuple(record.values()) for record in records]
    assert [one[2:3] + one[4:] for one in found] == [one[2:] for one in sorted(expected)]
    assert [one[3] for one in found] == pytest.approx([one[0] for one in sorted(expected)], abs=1e-5)
    assert [one[:2] for one in found] == [(name, str(folder / name)) for _, name, *_ in sorted(expected)]
    said = capsys.readouterr().out
    assert f"{len(expected)} of 26 pairs are doubtful:\n  image and caption are not among each other's nearest 20 %\n" in said
    assert "1 sample without a caption, not judged" in said
    assert "1 sample without rows, not judged: `mmcl data verify" in said


def test_a_run_with_the_written_list_leaves_exactly_those_out(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, out = tmp_path / "kept.txt", tmp_path / "found.jsonl"
    records = curated(folder, shards, out, "--nearest", str(NEAREST), "--list", str(kept), "--json")
    facts = json.loads(capsys.readouterr().out)
    doubtful = {record["sample"] for record in records}
    captions = [record["caption"] for record in records if record["sample"] == "red_tiny.png"]
    dropped = doubtful - ({"red_tiny.png"} if len(captions) == 1 else set())
    assert facts["dropped"] == len(dropped) > 0
    assert facts["doubtful"] == len(records)
    assert (facts["samples"], facts["pairs"], facts["uncaptioned"], facts["without_rows"]) == (27, 26, 1, 1)
    config = tiny_config(folder, tmp_path / "run", "--data.keep", str(kept))
    source, _ = build_training_data(config)
    everyone = {path.name for path in folder.glob("*.png")}
    assert {Path(source[index].name).name for index in range(len(source))} == everyone - dropped
    assert f"{len(everyone - dropped)}" == str(len(kept.read_text().splitlines()))


def test_a_sample_stays_while_one_of_its_captions_is_not_doubtful(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = curated(folder, shards, tmp_path / "all.jsonl", "--nearest", "1", "--min_score", "1")
    scores = sorted(record["similarity"] for record in everything if record["sample"] == "red_tiny.png")
    capsys.readouterr()
    limit = repr(sum(scores) / 2)
    kept = tmp_path / "kept.txt"
    flags = ("--nearest", "1", "--min_score", limit, "--list", str(kept))
    records = curated(folder, shards, tmp_path / "found.jsonl", *flags)
    assert all(record["similarity"] < float(limit) for record in records)
    assert [record["similarity"] for record in records] == sorted(record["similarity"] for record in records)
    assert "red_tiny.png" in kept.read_text().splitlines()
    said = capsys.readouterr().out
    assert "; 1 sample with another caption stay" in said
    assert "doubtful:\n  their cosine is below" in said


def test_no_doubt_is_no_error(folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".jsonl", ".parquet"):
        assert curated(folder, shards, tmp_path / f"none{suffix}", "--nearest", "1", "--min_score", "-1") == []
        assert "0 of 26 pairs are doubtful" in capsys.readouterr().out


def test_what_cannot_be_curated_is_one_line(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "captions.csv").write_text("image,caption\nred_tiny.png,a caption of its own\n")
    out, kept = tmp_path / "found.parquet", tmp_path / "kept.txt"
    given = [str(folder), "--rows", str(shards), "--out", str(out)]
    cases = [
        ([str(folder), "--rows", str(shards), "--out", "found.csv"], r"--out found.csv: give a file that ends in .parquet or"),
        ([str(folder), "--rows", str(tmp_path), "--out", str(out)], r"--rows: .* has no plan.json"),
        ([str(other), "--rows", str(shards), "--out", str(out)], r"--rows: .* was made from "),
        ([*given, "--nearest", "0"], r"--nearest is 0.0: give a share above 0 up to 1"),
        ([*given, "--nearest", "nan"], r"--nearest is nan: give a share"),
        ([*given, "--nearest", "1"], r"--nearest 1 doubts no pair: lower it, or set --min_score"),
        ([*given, "--min_score", "30"], r"--min_score is 30.0: give a cosine from -1 to 1"),
        ([*given, "--list", str(out)], r"--list .*: this is the table of --out"),
        ([*given, "--list", str(tmp_path / "no" / "kept.txt")], r"--list .*: there is no folder"),
        ([*given, "--args", "{group_column: x}"], r"no column 'x' for `group_column`"),
    ]
    for words, message in cases:
        assert main(["data", "curate", *words]) == 2
        said = capsys.readouterr().err
        assert re.search(message, said), said
        assert said.count("\n") == 1
    assert not out.exists()
    assert not kept.exists()


def test_nothing_is_written_if_nothing_would_be_kept(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "squares")
    job = EmbeddingJob(data=SourceConfig(path=str(folder)), model=str(run_dir), folder=tmp_path / "rows")
    run_embedding_job(job, workers=1)
    out, kept = tmp_path / "found.jsonl", tmp_path / "kept.txt"
    words = ["data", "curate", str(folder), "--rows", str(tmp_path / "rows"), "--out", str(out), "--list", str(kept)]
    assert main([*words, "--nearest", "1", "--min_score", "1"]) == 2
    assert "all samples are doubtful, and nothing would be left to train on" in capsys.readouterr().err
    assert not out.exists()
    assert not kept.exists()


@pytest.mark.parametrize("wrong", [["b", ["c"]], {"text": {"b": 1}}, [{"b": [1]}], [[]]], ids=str)
def test_captions_that_are_no_texts_are_left_out_or_one_line(
    wrong: Any, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table may hold anything; what embeds, curates, mines, evaluates or trains says which caption it is."""
    captions = ["a red square", "a blue square", wrong, "a black square"]
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    data, rows, out = tmp_path / "data.jsonl", tmp_path / "rows", tmp_path / "found.jsonl"
    records = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    data.write_text("".join(f"{json.dumps(one)}\n" for one in records))
    with pytest.raises(SystemExit, match="1"):  # something was left out
        main(["embed", str(data), "--model", str(run_dir), "--out", str(rows)])
    assert re.search(r"2\.png: the caption is of type (list|dict), not a text", capsys.readouterr().err)
    curated(data, rows, out)
    assert "doubtful" in capsys.readouterr().out
    for words in (
        ["mine", str(data), "--rows", str(rows), "--out", str(out)],
        ["eval", "retrieval", "--model", str(run_dir), "--data", str(data)],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_what_has_no_pairs_or_no_texts_is_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "texts": ([{"caption": "a red square"}, {"caption": "a blue square"}], "has no rows of an image and its caption"),
        "images": ([{"image": "a.png"}, {"image": "b.png"}], "has no rows of captions; run `mmcl embed` without --features"),
    }
    for name, (rows, said) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        for image in ("a.png", "b.png"):
            Image.new("RGB", (16, 16)).save(folder / image)
        data = folder / "data.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        job = EmbeddingJob(data=SourceConfig(path=str(data)), model=str(run_dir), folder=tmp_path / f"{name} rows")
        run_embedding_job(job, workers=1)
        words = [str(data), "--rows", str(tmp_path / f"{name} rows"), "--out", str(tmp_path / "found.jsonl")]
        assert main(["data", "curate", *words]) == 2
        assert said in capsys.readouterr().err
