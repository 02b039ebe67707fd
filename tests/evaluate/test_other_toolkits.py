"""Equal results to other toolkits on embeddings without ties, where these toolkits are installed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mmcl.evaluate import Report, linear_probe, retrieval
from tests.evaluate.toys import unit
from tests.narrow import present

IMAGES, CAPTIONS, KS = 80, 5, (1, 5, 10)


def captioned() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """80 images with five captions each, some of which are closer to another image."""
    image = unit((IMAGES, 24), 0)
    owner = np.arange(IMAGES * CAPTIONS) // CAPTIONS
    text = image[owner] + 2.2 * unit((IMAGES * CAPTIONS, 24), 1)
    return image, text / np.linalg.norm(text, axis=1, keepdims=True), owner


def report(ks: tuple[int, ...] = KS) -> Report:
    image, text, owner = captioned()
    return retrieval(image, text, image_ids=np.arange(IMAGES), text_image_ids=owner, ks=ks)


def test_clip_benchmark() -> None:
    toolkit = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image, text, owner = (torch.from_numpy(array) for array in captioned())
    score = text @ image.T
    positive = torch.zeros_like(score, dtype=torch.bool)
    positive[torch.arange(len(score)), owner] = True
    ours = report()
    for k in KS:
        for direction, args in {"text_to_image": (score, positive), "image_to_text": (score.T, positive.T)}.items():
            recall = toolkit.batchify(toolkit.recall_at_k, *args, 16, "cpu", k=k)
            assert ours[f"{direction}_R@{k}"] == pytest.approx((recall > 0).float().mean().item())
            assert ours[f"{direction}_recall@{k}"] == pytest.approx(recall.mean().item())
    assert 0.1 < present(ours["image_to_text_recall@1"]) < present(ours["image_to_text_R@1"]) < 0.95


def test_open_clip() -> None:
    """Its evaluation in training: one caption to an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        toolkit = pytest.importorskip("open_clip_train.train")
    image, text, _ = captioned()
    theirs = toolkit.get_clip_metrics(torch.from_numpy(image), torch.from_numpy(text[::CAPTIONS].copy()), 14.3)
    ours = retrieval(image, text[::CAPTIONS], image_ids=range(IMAGES), text_image_ids=range(IMAGES), ks=KS)
    for name, value in theirs.items():
        if name.endswith("median_rank"):  # It rounds the mean of the middle two down.
            assert np.floor(present(ours[name])) == value
        else:
            assert ours[name] == pytest.approx(value), name


def test_pytrec_eval() -> None:
    toolkit = pytest.importorskip("pytrec_eval")
    image, text, owner = captioned()
    score = image.astype(np.float64) @ text.T.astype(np.float64)
    run = {str(i): {str(t): float(value) for t, value in enumerate(row)} for i, row in enumerate(score)}
    truth = {str(i): {str(t): int(own == i) for t, own in enumerate(owner)} for i in range(IMAGES)}
    names = {"map": "mAP", "recall_10": "recall@10", "success_10": "R@10", "ndcg_cut_10": "nDCG@10"}
    found = toolkit.RelevanceEvaluator(truth, {"map", "recall.10", "success.10", "ndcg_cut.10", "map_cut.10"}).evaluate(run)
    ours = report()
    for theirs, name in names.items():
        expected = np.mean([query[theirs] for query in found.values()])
        assert ours[f"image_to_text_{name}"] == pytest.approx(expected), name
    # It divides by all positives, here 5 of them and so the same as the smaller of 10 and 5.
    assert ours["image_to_text_mAP@10"] == pytest.approx(np.mean([query["map_cut_10"] for query in found.values()]))


def test_sentence_transformers() -> None:
    toolkit = pytest.importorskip("sentence_transformers.evaluation")
    image, text, owner = captioned()

    class Given:
        """A model whose sentences are the numbers of given rows."""

        similarity_fn_name = "cosine"
        model_card_data = None

        def __init__(self, rows: np.ndarray):
            self.rows = rows

        def encode(self, sentences: list[str], **_: Any) -> torch.Tensor:
            return torch.from_numpy(np.stack([self.rows[int(sentence)] for sentence in sentences]))

        encode_query = encode_document = encode

    evaluator = toolkit.InformationRetrievalEvaluator(
        {str(i): str(i) for i in range(IMAGES)},
        {str(t): str(t) for t in range(len(text))},
        {str(i): {str(t) for t in np.flatnonzero(owner == i)} for i in range(IMAGES)},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=list(KS),
        precision_recall_at_k=list(KS),
        map_at_k=[3],
        score_functions={"cosine": lambda a, b: a @ b.T},
    )
    theirs = evaluator.compute_metrices(Given(image), corpus_model=Given(text))["cosine"]
    ours = report()
    for k in KS:
        assert ours[f"image_to_text_R@{k}"] == pytest.approx(theirs["accuracy@k"][k])
        assert ours[f"image_to_text_recall@{k}"] == pytest.approx(theirs["recall@k"][k])
    assert ours["image_to_text_MRR@10"] == pytest.approx(theirs["mrr@k"][10])
    assert ours["image_to_text_nDCG@10"] == pytest.approx(theirs["ndcg@k"][10])
    assert report((3,))["image_to_text_mAP@3"] == pytest.approx(theirs["map@k"][3])


def test_adamw_probe_is_near_that_of_clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own training loop, with `cuda` taken for `cpu`; other first weights and another order."""
    toolkit = pytest.importorskip("clip_benchmark.metrics.linear_probe")
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda module, device_ids: module)
    monkeypatch.setattr("builtins.print", lambda *_: None)
    label = np.arange(900) % 6
    feature = unit((6, 24), 0)[label] + 1.5 * unit((900, 24), 1)
    feature = (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)
    train = torch.utils.data.TensorDataset(torch.from_numpy(feature[:600]), torch.from_numpy(label[:600]))
    loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True)
    model = toolkit.train(loader, 24, 6, 0.0, 0.1, 10, False, "cpu", 0)
    theirs = (model(torch.from_numpy(feature[600:])).argmax(1).numpy() == label[600:]).mean()
    ours = linear_probe(feature[:600], label[:600], feature[600:], label[600:], solver="adamw")["linear_top1"]
    assert 0.5 < theirs < 0.99
    assert ours == pytest.approx(theirs, abs=0.015)
