"""`mmcl mine`: from stored rows to a table that training reads. The negatives themselves: `tests/search/test_mining.py`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import mmcl
from mmcl.cli.main import main
from mmcl.config import SourceConfig
from mmcl.data.captions import caption_key
from mmcl.runs.embedding.job import EmbeddingJob
from mmcl.runs.embedding.runners import run_embedding_job
from mmcl.runs.run import train
from tests.engine.tiny import make_folder, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_config(folder, tmp_path_factory.mktemp("runs") / "tiny", "--train.steps", "2")).run_dir


@pytest.fixture(scope="module")
def shards(folder: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded(folder, run_dir, tmp_path_factory.mktemp("rows") / "shards")


def embedded(data: Path, model: Path, out: Path) -> Path:
    run_embedding_job(EmbeddingJob(data=SourceConfig(path=str(data)), model=str(model), folder=out, shard_rows=8), workers=1)
    return out


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_table_of_negatives_is_what_the_model_says_and_is_trained_on(
    suffix: str, folder: Path, run_dir: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nearest captions of others, by the model itself, that score at most 95 % of the sample's own."""
    out = tmp_path / f"mined{suffix}"
    assert main(["mine", str(folder), "--rows", str(shards), "--out", str(out), "--number", "2"]) == 0
    said = capsys.readouterr().out
    model, source, mined = mmcl.load_model(run_dir), mmcl.open_source("auto", str(folder)), mmcl.open_source("auto", str(out))
    samples = [source[index] for index in range(len(source))]
    captions = [sample.captions[0] for sample in samples]
    score = model.encode_image([sample.required_image() for sample in samples]) @ model.encode_text(captions).T
    expected = {}
    for index, sample in enumerate(samples):
        own = score[index, index]
        order = [k for k in np.argsort(-score[index]) if k != index and score[index, k] <= own - 0.05 * abs(own)]
        expected[Path(str(sample.image)).name] = [captions[k] for k in order[:2]]
    found = {Path(str(one.image)).name: list(one.negatives) for one in (mined[index] for index in range(len(mined)))}
    assert found == {name: texts for name, texts in expected.items() if texts}
    assert f"negatives for {len(found)} of 25 samples in {out}" in said
    assert "relative_margin refused" in said
    assert f"next: mmcl train clip_finetune --data.train.path {out}" in said
    if suffix == ".jsonl":
        return
    hard = ("--method", "{name: clip, args: {hard_negatives: true}}", "--train.steps", "1", "--train.batch_size", "4")
    train(tiny_config(out, tmp_path / "run", *hard))


def test_negatives_of_texts_and_what_json_says(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.jsonl"
    words = ["mine", str(folder), "--rows", str(shards), "--out", str(out), "--query", "text", "--json", "--strategy", "random"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert facts["samples"] == facts["captions"] == 25
    assert facts["rows"] == len(rows)
    assert facts["negatives"] == sum(len(row["negative"]) for row in rows)
    for row in rows:
        assert not {*map(caption_key, row["caption"])} & {*map(caption_key, row["negative"])}


def test_captions_of_a_group_are_not_negatives(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    """All squares of a color are a group; one caption occurs twice, and its other case is the same caption."""
    data = tmp_path / "grouped"
    shutil.copytree(folder, data)
    lines = (data / "captions.csv").read_text().splitlines()
    grouped = [f"{line},{line.partition('_')[0]}" for line in lines[1:]]
    again = "red_tiny.png,A TINY  blue square,red"
    (data / "captions.csv").write_text("\n".join([f"{lines[0]},color", *grouped, again]) + "\n")
    args = "{group_column: color}"
    source = SourceConfig(path=str(data / "captions.csv"), args={"group_column": "color"})
    job = EmbeddingJob(data=source, model=str(run_dir), folder=tmp_path / "shards", shard_rows=50)
    run_embedding_job(job, workers=1)
    words = ["mine", str(data / "captions.csv"), "--data_args", args, "--rows", str(tmp_path / "shards"), "--number", "20"]
    assert main([*words, "--out", str(tmp_path / "mined.jsonl"), "--relative_margin", "-9"]) == 0
    for row in map(json.loads, (tmp_path / "mined.jsonl").read_text().splitlines()):
        color = Path(row["image"]).name.partition("_")[0]
        assert len(row["negative"]) == (19 if color == "red" else 20)
        assert not [text for text in row["negative"] if color in text]
        assert color != "red" or "tiny blue square" not in " ".join(row["negative"])


def test_what_cannot_be_mined_is_one_line(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "captions.csv").write_text("image,caption\nred_tiny.png,a caption of its own\n")
    given, out = ["--rows", str(shards), "--out"], tmp_path / "mined.parquet"
    cases = [
        ([str(folder), *given, "mined.csv"], r"--out mined.csv: give a file that ends in .parquet or .jsonl"),
        ([str(folder), "--rows", str(tmp_path), "--out", str(out)], r"--rows: .* has no plan.json"),
        ([str(other), *given, str(out)], r"--rows: .* was made from "),
        ([str(folder), *given, str(out), "--range_max", "2"], r"--range_max 2 leaves 2 candidates"),
        ([str(folder), *given, str(out), "--max_score", "nan"], r"--max_score is nan: give a number"),
        (
            [str(folder), *given, str(out), "--min_score", "0.5", "--max_score", "0.2"],
            r"--min_score 0.5 is above --max_score 0.2",
        ),
        ([str(folder), *given, str(out), "--max_score", "-1"], r"nothing was written: of 600 candidates, .*max_score refused"),
        ([str(folder), *given, str(out), "--range_min", "90"], r"nothing was written: .*"),
    ]
    for words, message in cases:
        assert main(["mine", *words]) == 2
        said = capsys.readouterr().err
        assert re.search(message, said), said
        assert said.count("\n") == 1
    assert not out.exists()
