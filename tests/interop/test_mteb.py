"""Models under mteb: its figures on local tasks are those of our evaluators. Tasks of its own would download."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcl
from mmcl.cli.main import main
from mmcl.data.derived.subset import Subset
from mmcl.data.source import Source
from mmcl.errors import UserError
from mmcl.evaluate import CachedModel, Report, Task, run
from mmcl.interop.model import Model
from mmcl.runs.mteb import evaluate_tasks, result_name
from mmcl.testing.patterns import PatternModel
from tests.interop.export import models

# mteb is imported by the tests that need it: for seconds, in every process that collects them otherwise.
pytestmark = [
    pytest.mark.skipif(find_spec("mteb") is None, reason="the extra mteb is not installed"),
    pytest.mark.filterwarnings("ignore:Precision is ill-defined"),  # of classes that mteb's zero-shot never predicts
]

KS = (1, 5, 10)
AT: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A CLIP of random weights: what it finds is neither perfect nor tied."""
    return models.MODELS["open_clip CLIP"](tmp_path_factory.mktemp("model") / "theirs")


@pytest.fixture(scope="module")
def source() -> Source:
    """120 emoji, two images of each of 60 names, of 9 groups."""
    emoji = mmcl.open_source("emoji", args={"vendors": ["noto", "twemoji"], "flags": False, "split": "unseen_concept"})
    captions = np.array([emoji[row].captions[0] for row in range(len(emoji))])
    names, count = np.unique(captions, return_counts=True)
    return Subset(emoji, np.flatnonzero(np.isin(captions, names[count == 2][::7][:60])))


def metadata(name: str, **facts: Any) -> Any:
    import mteb

    return mteb.TaskMetadata(
        name=name,
        description="Emoji.",
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        modalities=["text", "image"],
        **facts,
    )


def columns(source: Source) -> Any:
    from datasets import Dataset, Image

    images = [{"bytes": source[row].image, "path": None} for row in range(len(source))]
    return Dataset.from_dict({"id": [f"image {row}" for row in range(len(source))], "image": images}).cast_column(
        "image", Image()
    )


def task_of(base: type, facts: Any, dataset: Any, **members: Any) -> Any:
    """An instance of a task whose data are there."""

    def load_data(self: Any, **_: Any) -> None:
        self.dataset, self.data_loaded = dataset, True

    return type(facts.name, (base,), {"metadata": facts, "load_data": load_data, **members})()


def retrieval_task(source: Source, *, of_texts: bool) -> Any:
    """Texts are the queries, or else the images."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    ids = np.asarray(source.ids)
    captions = {int(ids[row]): source[row].captions[0] for row in range(len(source))}
    texts = Dataset.from_dict({"id": [f"text {one}" for one in captions], "text": list(captions.values())})
    images = columns(source)
    pairs = [(f"text {ids[row]}", f"image {row}") for row in range(len(source))]
    relevant: dict[str, dict[str, int]] = {}
    for text, image in pairs:
        query, document = (text, image) if of_texts else (image, text)
        relevant.setdefault(query, {})[document] = 1
    queries, corpus = (texts, images) if of_texts else (images, texts)
    split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
    category = "t2i" if of_texts else "i2t"
    facts = metadata(f"Emoji{category}", type="Any2AnyRetrieval", category=category, main_score="ndcg_at_10")
    return task_of(AbsTaskRetrieval, facts, {"default": {"test": split}}, k_values=KS)


def zero_shot_task(source: Source) -> Any:
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

    labeled = columns(source).add_column("label", np.asarray(source.labels).tolist())
    prompts = [f"a picture of {name}" for name in source.class_names or ()]
    facts = metadata("EmojiZeroShot", type="ZeroShotClassification", category="i2t", main_score="accuracy")
    members = {"get_candidate_labels": lambda self: prompts}
    return task_of(AbsTaskZeroShotClassification, facts, {"test": labeled}, **members)


def scores(model: Any, task: Any, folder: Path) -> dict[str, float]:
    found, failures = evaluate_tasks(mmcl.MTEBModel(model, "tiny"), [task], folder)
    assert failures == []
    [score] = found
    [result] = json.loads(score.file.read_text())["scores"]["test"]
    assert score.value == result[score.metric]
    return result  # type: ignore[no-any-return]


def ours(evaluator: str, model: Model, source: Source, **args: Any) -> Report:
    return run([(evaluator, args)], [CachedModel(model)], [Task("emoji", source, baselines=False, figures=False)])


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_retrieval_is_that_of_mteb(
    direction: str, model: Model, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It rounds the results to five digits.
    whole = lambda value, digits=None: round(value) if digits is None else value  # noqa: E731
    monkeypatch.setattr("mteb._evaluators.retrieval_metrics.round", whole, raising=False)
    theirs = scores(model, retrieval_task(source, of_texts=direction == "text_to_image"), tmp_path)
    report = ours("retrieval", model, source, ks=KS)
    names = {"ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10"}
    names |= {f"hit_rate_at_{k}": f"R@{k}" for k in KS} | {f"recall_at_{k}": f"recall@{k}" for k in KS}
    assert 0.02 < theirs["hit_rate_at_10"] < 0.9
    for name, own in names.items():
        assert report[f"{direction}_{own}"] == pytest.approx(theirs[name], abs=1e-6), name


def test_zero_shot_is_that_of_mteb(model: Model, source: Source, tmp_path: Path) -> None:
    theirs = scores(model, zero_shot_task(source), tmp_path)
    report = ours("zero_shot", model, source, templates="a picture of {}")
    assert 0.05 < theirs["accuracy"] < 0.9
    assert report["zero_shot_top1"] == pytest.approx(theirs["accuracy"], abs=1e-6)
    assert report["zero_shot_macro_f1"] == pytest.approx(theirs["f1"], abs=1e-6)


def test_the_embeddings_are_those_of_the_model(model: Model) -> None:
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 255)]
    texts = ["a cat", "a dog", "an apple"]
    wrapped = mmcl.MTEBModel(model, "tiny")
    batches: dict[str, Any] = {
        "image": [{"image": images[:2]}, {"image": images[2:]}],
        "text": [{"text": texts[:1]}, {"text": texts[1:]}],
        "both": [{"image": images[:2], "text": texts[:2]}, {"image": images[2:], "text": texts[2:]}],
    }
    found = {name: wrapped.encode(own, **AT) for name, own in batches.items()}
    np.testing.assert_allclose(found["image"], model.encode_image(images), atol=1e-6)
    np.testing.assert_allclose(found["text"], model.encode_text(texts), atol=1e-6)
    both = found["image"].astype(float) + found["text"]
    np.testing.assert_allclose(found["both"], both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-6)
    cosine = found["image"] @ found["text"].T
    np.testing.assert_allclose(wrapped.similarity(found["image"], found["text"]), cosine, atol=1e-6)
    np.testing.assert_allclose(wrapped.similarity_pairwise(found["image"], found["text"]), cosine.diagonal(), atol=1e-6)


def test_the_metadata_say_what_is_known(model: Model) -> None:
    meta = mmcl.MTEBModel(model, "tiny").mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens) == ("mmcl/tiny", model.fingerprint, 16, 20)
    assert meta.n_parameters == sum(one.numel() for one in model.towers.parameters())
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 2**20)
    assert sorted(meta.modalities) == ["image", "text"]
    unknown = ("license", "release_date", "open_weights", "public_training_data", "training_datasets", "languages")
    assert all(getattr(meta, name) is None for name in unknown)
    small = mmcl.MTEBModel(mmcl.TruncatedModel(model, 4), "me/tiny").mteb_model_meta
    assert (small.name, small.embed_dim, small.n_parameters, small.max_tokens) == ("me/tiny", 4, meta.n_parameters, 20)
    assert small.revision != meta.revision
    other = mmcl.MTEBModel(PatternModel(has_text=False), "patterns").mteb_model_meta
    assert (other.modalities, other.n_parameters, other.framework) == (["image"], None, [])
    from mteb import EncoderProtocol

    assert isinstance(mmcl.MTEBModel(model, "tiny"), EncoderProtocol)


def test_what_was_evaluated_is_not_evaluated_again(source: Source, tmp_path: Path) -> None:
    class Named(PatternModel):
        embed_dim = 192

        def encode_text(self, texts: Any, **options: Any) -> np.ndarray:
            return super().encode_text([str(sum(map(ord, text))) for text in texts], **options)

    counting = Named()
    first, again = (scores(counting, zero_shot_task(source), tmp_path) for _ in range(2))
    assert first == again
    assert sum(counting.image_calls) == len(source)


def test_what_cannot_be_evaluated_is_a_line(model: Model, source: Source, tmp_path: Path) -> None:
    def fail(self: Any) -> list[str]:
        raise RuntimeError("no labels\nin two lines")

    broken = zero_shot_task(source)
    type(broken).get_candidate_labels = fail
    found, failures = evaluate_tasks(mmcl.MTEBModel(model, "tiny"), [broken, zero_shot_task(source)], tmp_path)
    assert [one.task for one in found] == ["EmojiZeroShot"]
    assert failures == ["EmojiZeroShot: no labels"]
    images_only = mmcl.MTEBModel(PatternModel(has_text=False), "patterns")
    _, failures = evaluate_tasks(images_only, [broken], tmp_path)
    assert failures == ["EmojiZeroShot: needs a model of image and text, and this one does not embed text"]


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"audio": [0]}, {}, "mmcl/tiny embeds images and texts, and these inputs have audio"),
        ({"id": [0]}, {}, "these inputs have id"),
        ({"text": ["a"]}, {"precision": "int8"}, "precision 'int8' is not supported"),
    ],
)
def test_other_inputs_are_a_user_error(batch: Any, options: Any, message: str, model: Model) -> None:
    with pytest.raises(UserError, match=message):
        mmcl.MTEBModel(model, "tiny").encode([batch], **AT, **options)  # type: ignore[arg-type]


def test_the_verb_ends_in_a_table_and_in_lines_on_what_failed(
    model: Model,
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mteb

    model.save(tmp_path / "clip")
    tasks = {"EmojiZeroShot": zero_shot_task(source), "CIFAR10ZeroShot": mteb.get_task("CIFAR10ZeroShot")}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["eval", "mteb", str(tmp_path / "clip"), "--out", str(tmp_path / "results"), "--tasks", *tasks]
    with pytest.raises(SystemExit, match="1"):
        main(words)
    printed = capsys.readouterr()
    value = json.loads(next(tmp_path.rglob("EmojiZeroShot.json")).read_text())["scores"]["test"][0]["accuracy"]
    row = next(line for line in printed.out.splitlines() if line.strip().startswith("EmojiZeroShot"))
    assert row.split() == ["EmojiZeroShot", f"{value:.3f}", "accuracy", "Zero", "Shot", "Classification", "test"]
    assert f"results  {tmp_path}/results/results/mmcl__clip/{model.fingerprint}" in printed.out
    [line] = [one for one in printed.err.splitlines() if one.startswith("not evaluated")]
    assert line.startswith("not evaluated: CIFAR10ZeroShot: HF_HUB_OFFLINE is set, and its data are not in the cache; unset it")

    assert main([*words[:-1], "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["task"], found["metric"], found["value"]) == ("EmojiZeroShot", "accuracy", value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no task given: mmcl eval mteb {folder} --tasks"),
        (["--tasks", "CIFAR10ZeroShots"], "has no task 'CIFAR10ZeroShots'; did you mean 'CIFAR10ZeroShot'?"),
        (["--tasks", "CIFAR10ZeroShot", "--out", "a.csv"], "a folder is written"),
    ],
)
def test_wrong_words_are_a_line(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "mteb", str(tmp_path), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(folder=tmp_path) in line


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"pip install 'mmcl\[mteb\]'"):
        _ = mmcl.MTEBModel(model, "tiny").mteb_model_meta


def test_names_of_results_are_those_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "my run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "my run")
    assert result_name(".") == result_name(str(tmp_path / "runs" / "my run")) == "my_run"
    assert result_name("open_clip:ViT-B-32/laion2b_s34b_b79k") == "open_clip_ViT-B-32_laion2b_s34b_b79k"
