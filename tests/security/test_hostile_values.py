"""Every value of every file that others may have written, replaced by each of a list: it is read, or refused in one line, and
takes neither memory nor the network."""

from __future__ import annotations

import copy
import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

from mmcl.config import TrainConfig
from mmcl.encoders.tokenizers import Tokenizer, clip_bpe
from mmcl.encoders.tower import TowerSpec, build_tower
from mmcl.engine.best_checkpoint import BestScore, BestState
from mmcl.engine.checkpoint import AVERAGE, load_average, load_checkpoint, seal, take_snapshot, verify
from mmcl.engine.checkpoint_writer import write_checkpoint
from mmcl.engine.run_state import RunState, ScalerState, read_run_state
from mmcl.engine.weight_average import WeightAverage
from mmcl.errors import UserError
from mmcl.evaluate.classifier import HeadClassifier
from mmcl.evaluate.embedding_file import stored_task
from mmcl.evaluate.head import Head
from mmcl.evaluate.measures.outcomes import Influence, Outcomes, outcomes_file, read_outcomes
from mmcl.evaluate.reporting.compare import compare
from mmcl.evaluate.reporting.metric import Metric, Provenance
from mmcl.evaluate.reporting.report import Report
from mmcl.interop.bounds import bounded_build
from mmcl.interop.load import load_model
from mmcl.interop.save import save_model
from mmcl.preprocess import Preprocess
from mmcl.runs.resume import compare as compare_identities
from mmcl.runs.resume import read_identity
from mmcl.search import Index
from mmcl.testing.patterns import PatternModel, PatternSource
from tests.interop.test_model import TOKENIZER, make_towers

NESTED: list[Any] = []
for _ in range(200):
    NESTED = [NESTED]
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 3, 10**6 + 1, 10**7, 10**18, 2**63, -0.5, float("nan"), float("inf"), -1e308,
    "", "abc", "evil", "-5", "1e400", "../../../etc/passwd", "/dev/zero", "\x1b]52;c;AAAA\x07", "hf-hub:someone/model",
    "\ud800", "x" * 10**5, [], [-1], [10**9] * 3, [[]], {}, {"a": 1}, {"__class__": "os.system"}, NESTED,
]  # fmt: skip


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a JSON tree, inner ones included."""
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(children)[:3] if isinstance(node, list) else children:
        yield from leaves(child, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def model_folder(folder: Path) -> Callable[[], Any]:
    save_model(folder, make_towers(), logit_scale=10.0, provenance={"config": {"a": 1}})

    def read() -> None:
        model = load_model(folder, device="cpu")
        rows = model.encode_text(["a cat", ""])
        assert np.isfinite(rows).all()
        assert model.logit_scale is None or 0 < model.logit_scale < 1e7

    return read


def index_folder(folder: Path) -> Callable[[], Any]:
    model = PatternModel()
    Index.build(PatternSource(4, seed=0), model).save(folder)
    return lambda: Index.load(folder, model).search(image=np.zeros((8, 8, 3), np.uint8), top_k=2)


def report_folder(folder: Path) -> Callable[[], Any]:
    outcomes = Outcomes(np.ones(3, np.float32), names=("a", "b", "c"), within=(0, 1))
    metrics = (
        Metric("knn", "data", "knn1", "model", 1.0, 0.5, 1.0, 3, outcomes),
        Metric("knn", "data", "n", "model", 3, None, None, 3),
    )
    provenance = Provenance("knn", "data", "model", 3, "a", None, "b", "float32", 0, {"torch": "2"})
    Report(metrics, ("a note",), {"a": [1]}, {"figure": b"png"}, (provenance,), {"page": "<p>"}, ("a failure",)).save(folder)

    def read() -> None:
        details = json.loads((folder / "details.json").read_text())
        if isinstance(details.get("sha256"), dict):  # whoever forges a file forges its digest
            sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
            details["sha256"] |= {name: sums[name] for name in details["sha256"] if name in sums and name == "metrics.json"}
            (folder / "details.json").write_bytes(json.dumps(details).encode("utf-8", "surrogatepass"))
        found = Report.load(folder)
        assert found.to_text()
        assert found.to_html()
        compare(found, found, models=("model", "model"))

    return read


def rows_of_a_report(folder: Path) -> Callable[[], Any]:
    """The header of rows.safetensors, as a file of its own."""
    rows = np.ones(3, np.float32)
    hits = Outcomes(rows, names=("a", "b", "c"), within=(0, 1))
    auroc = Outcomes(rows, "influence", np.arange(3), influence=Influence(0.5, rows, 3.0))
    content = outcomes_file({("a", "b", "c", "d"): hits, ("a", "b", "auroc", "d"): auroc})
    (folder / "rows.safetensors").parent.mkdir()
    tensors, header = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (folder / "rows.json").write_text(header["__metadata__"]["rows"])

    def read() -> None:
        (folder / "rows.safetensors").write_bytes(
            save(tensors, {"rows": json.dumps(json.loads((folder / "rows.json").read_text()))})
        )
        read_outcomes(folder / "rows.safetensors")

    return read


IDENTITY = {
    "settings": {"seed": 0},
    "frozen": {"image": "1"},
    "data": "a",
    "images": "b",
    "all_images": None,
    "environment": {"python": "3"},
}


def run_folder(folder: Path) -> Callable[[], Any]:
    folder.mkdir()
    (folder / "identity.json").write_text(json.dumps(IDENTITY))

    def read() -> None:
        config: Any = SimpleNamespace(run_dir=str(folder), init=None, allow_change=("seed", "data", "train"), verify_data=False)
        compare_identities(read_identity(folder, None), copy.deepcopy(IDENTITY), config)

    return read


def checkpoint_folder(folder: Path) -> Callable[[], Any]:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    best = BestState(metric="a", value=0.5, step=1, waiting=0)
    scaler = ScalerState(**torch.amp.GradScaler("cpu").state_dict())
    state = RunState(bad=2, seen=9, bad_run=1, skipped=0, scaler=scaler, best=best, averaged=1)
    average = WeightAverage(module, 0.9)
    average.update()
    snapshot = take_snapshot(1, module, optimizer, average=average.tensors, identity=IDENTITY, state=asdict(state))
    written = write_checkpoint(folder, snapshot, keep=2)
    (folder / "MANIFEST.json").write_bytes((written / "MANIFEST.json").read_bytes())

    def read() -> None:
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        if "sha256" in manifest:  # whoever forges a file forges its digest
            del manifest["sha256"]
            manifest["sha256"] = seal(manifest)
        (written / "MANIFEST.json").write_text(json.dumps(manifest))
        checkpoint = verify(written)
        load_checkpoint(checkpoint, module, optimizer)
        read_identity(folder, checkpoint)
        state = read_run_state(checkpoint)
        assert state.bad <= state.seen
        assert load_average(checkpoint, average.tensors) or not state.averaged
        BestScore(TrainConfig(keep_best="a")).restore(state.best, folder)
        if state.scaler:
            torch.amp.GradScaler("cpu").load_state_dict(asdict(state.scaler))

    return read


def embeddings_file(folder: Path) -> Callable[[], Any]:
    """What a parquet file says of itself, as a file of its own."""
    folder.mkdir()
    said = {"model": "a", "data": "b", "logit_scale": 10.0, "logit_bias": 1.0}
    (folder / "said.json").write_text(json.dumps(said))

    def read() -> None:
        table = pa.table({"kind": ["image", "image"], "embedding": [[1.0, 0.0], [0.0, 1.0]]})
        said = (folder / "said.json").read_bytes()
        pq.write_table(table.replace_schema_metadata({"mmcl": said}), folder / "a.parquet")
        model, task = stored_task(folder / "a.parquet")
        assert model.encode_image(task.source).shape == (2, 2)

    return read


def head_folder(folder: Path) -> Callable[[], Any]:
    """What the file of a head says of itself, as a file of its own."""
    head = Head(np.eye(2), np.zeros(2), ("a", "b"), PatternModel.fingerprint, "sigmoid", (0.5, None), {"evaluator": "x"})
    head.save(folder / "head.safetensors")
    content = (folder / "head.safetensors").read_bytes()
    tensors, header = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (folder / "head.json").write_text(header["__metadata__"]["mmcl_head"])

    def read() -> None:
        forged = save(tensors, {"mmcl_head": json.dumps(json.loads((folder / "head.json").read_text()))})
        (folder / "head.safetensors").write_bytes(forged)
        head = Head.load(folder / "head.safetensors")
        assert np.isfinite(head.logits(np.eye(2))).all()
        with suppress(UserError):
            HeadClassifier(PatternModel(), head)

    return read


READERS: dict[str, tuple[Callable[[Path], Callable[[], Any]], str]] = {
    "model": (model_folder, "config.json"),
    "tokenizer": (model_folder, "tokenizer.json"),
    "index": (index_folder, "index.json"),
    "metrics": (report_folder, "metrics.json"),
    "details": (report_folder, "details.json"),
    "rows": (rows_of_a_report, "rows.json"),
    "identity": (run_folder, "identity.json"),
    "manifest": (checkpoint_folder, "MANIFEST.json"),
    "embeddings": (embeddings_file, "said.json"),
    "head": (head_folder, "head.json"),
}


def trials(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return [(path, value) for path in leaves(tree) for value in HOSTILE]


def sweep(name: str, folder: Path, every: int) -> None:
    make, file = READERS[name]
    read = make(folder)
    tree = json.loads((folder / file).read_text())
    for path, value in trials(tree)[::every]:
        (folder / file).write_bytes(json.dumps(replaced(tree, path, value)).encode("utf-8", "surrogatepass"))
        try:
            read()
        except UserError:  # always one line
            continue
        except BaseException as error:
            raise AssertionError(f"{file}: {path} = {str(value)[:60]}: {error!r}") from error


@pytest.mark.parametrize("name", READERS)
def test_a_sample_of_hostile_values_is_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    sweep(name, tmp_path / "folder", every=29)  # no divisor of the list's length: every leaf meets others


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_every_hostile_value_is_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    sweep(name, tmp_path / "folder", every=1)


HEADER = json.dumps({"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 10**12]}}).encode()
AVERAGES: dict[str, bytes] = {
    "nothing": b"",
    "no tensors": save({}),
    "one missing": save({"weight": np.zeros((2, 2), np.float32)}),
    "one more": save({name: np.zeros((2, 2)[: 2 - (name != "weight")], np.float32) for name in ("weight", "bias", "more")}),
    "another shape": save({"weight": np.zeros(4, np.float32), "bias": np.zeros(2, np.float32)}),
    "whole numbers": save({"weight": np.zeros((2, 2), np.int64), "bias": np.zeros(2, np.float32)}),
    "complex numbers": save({"weight": np.zeros((2, 2), np.complex64), "bias": np.zeros(2, np.float32)}),
    "a header that lies": len(HEADER).to_bytes(8, "little") + HEADER,
    "a pickle": b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("content", AVERAGES.values(), ids=AVERAGES)
def test_a_forged_average_of_the_weights_is_refused_and_fills_nothing(content: bytes, tmp_path: Path) -> None:
    """The optional third file of tensors: its digest in the manifest is forged with it."""
    read = checkpoint_folder(tmp_path / "folder")
    [written] = (path for path in (tmp_path / "folder").iterdir() if path.is_dir())
    (written / AVERAGE).write_bytes(content)
    manifest = json.loads((tmp_path / "folder/MANIFEST.json").read_text())
    manifest["files"][AVERAGE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "folder/MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"average\.safetensors|does not fit") as error:
        read()
    assert "\n" not in str(error.value)
    tensors = {"weight": torch.full((2, 2), 7.0), "bias": torch.full((2,), 7.0)}
    with suppress(UserError):
        load_average(verify(written), tensors)
    assert all((tensor == 7).all() for tensor in tensors.values())


def test_an_average_that_is_counted_and_not_there_is_damage(tmp_path: Path) -> None:
    """Otherwise a resumed run would begin to average anew, without a word."""
    read = checkpoint_folder(tmp_path / "folder")
    manifest = json.loads((tmp_path / "folder/MANIFEST.json").read_text())
    del manifest["files"][AVERAGE]
    (tmp_path / "folder/MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"it lists no average\.safetensors, and state\.averaged is 1"):
        read()


def edited(folder: Path, file: str, path: tuple[Any, ...], value: Any) -> Path:
    tree = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(replaced(tree, path, value)))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", make_towers(), logit_scale=10.0)
    return tmp_path / "model"


@pytest.mark.parametrize("value", [0.0, -5.0, 1e30, "abc", float("nan")])
def test_a_scale_that_ranks_the_wrong_way_round_is_refused(value: Any, saved: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json .*logit_scale"):
        load_model(edited(saved, "config.json", ("logit_scale",), value), device="cpu")


@pytest.mark.parametrize("heads", [-1, -2])
def test_a_tower_that_can_be_built_and_cannot_encode_is_refused(heads: int, saved: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is damaged: its text tower cannot encode"):
        load_model(edited(saved, "config.json", ("towers", "text", "encoder_args", "heads"), heads), device="cpu")


@pytest.mark.parametrize(
    ("encoder", "args"),
    [
        ("small_cnn", {"channels": 3, "feature_dim": 10**9}),
        ("strided_cnn", {"kernel": 1_000_001}),
        ("strided_cnn", {"blocks": [10**7, 0, 0]}),
        ("strided_cnn", {"widths": [-1, 2, 3]}),
        (
            "open_clip",
            {"config": {"embed_dim": 8, "vision_cfg": {"image_size": 10**6, "layers": 1, "width": 64, "patch_size": 1}}},
        ),
        ("timm", {"name": "vit_tiny_patch16_224", "model_args": {"depth": 10**7}}),
        ("timm", {"name": "vit_tiny_patch16_224", "model_args": {"embed_dim": 3 * 10**6}}),
    ],
)
def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(encoder: str, args: dict[str, Any], saved: Path) -> None:
    edited(saved, "config.json", ("towers", "image", "encoder"), encoder)
    edited(saved, "config.json", ("towers", "image", "encoder_args"), args)
    before = torch.cuda.is_available() and torch.cuda.memory_allocated()
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(saved, device="cpu")
    assert before == (torch.cuda.is_available() and torch.cuda.memory_allocated())


def test_a_context_of_ten_million_tokens_is_refused_before_it_is_built(saved: Path) -> None:
    edited(saved, "tokenizer.json", ("context_length",), 10_000_000)
    with pytest.raises(UserError, match="exceeds the 77 positions"):
        load_model(saved, device="cpu")
    edited(saved, "config.json", ("towers", "text", "encoder_args", "context_length"), 10_000_000)
    with pytest.raises(UserError, match="cannot fill"):
        load_model(saved, device="cpu")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.zeros(2**40),
        lambda: torch.arange(2**20)[:, None] < torch.arange(2**20),
        lambda: torch.ones(5).expand(2**40, 5).contiguous(),
        lambda: nn.Embedding(2**30, 512),
        lambda: torch.ones(2**14, 1) @ torch.ones(1, 2**14),
    ],
)
def test_no_tensor_that_the_weights_could_not_fill_is_made(allocate: Callable[[], Any], tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="cannot fill"), bounded_build([tmp_path / "weights"], "here"):
        allocate()


def test_what_the_weights_fill_is_built_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"0" * 100)

    def build() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        spec = TowerSpec(modality="text", encoder="small_text", encoder_args={"width": 24, "layers": 1})
        return build_tower(spec, tokenizer=TOKENIZER).state_dict()

    with bounded_build([tmp_path / "weights"], "here"):
        within = build()
    torch.testing.assert_close(within, build(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(pad_id=10**6),
        lambda tree: tree.update(end_id=-1),
        lambda tree: tree["backend"].update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        lambda tree: tree["backend"].update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        lambda tree: tree["backend"]["model"]["vocab"].update({"[UNK]": 2**31}),
        lambda tree: tree["backend"]["model"].update(vocab={}),
        lambda tree: tree["backend"]["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**6]),
    ],
)
def test_a_broken_tokenizer_is_refused_when_it_is_read_or_named_when_it_breaks(
    change: Callable[[Any], Any], tmp_path: Path
) -> None:
    tree = TOKENIZER.to_json()
    change(tree)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    ids = torch.zeros(1)
    with suppress(UserError):
        ids = Tokenizer.load(tmp_path / "tokenizer.json")(["a cat", "a" * 40 + "b"]).ids
    assert ids.min() >= 0
    assert ids.max() < TOKENIZER.vocab_size


def test_the_probes_pass_for_tokenizers_that_work() -> None:
    clip_bpe().check()
    TOKENIZER.check()


@pytest.mark.parametrize("values", [{"size": 10**9}, {"size": 8, "resize_size": [8, 10**9]}, {"size": 8, "channels": 10**12}])
def test_images_of_a_size_that_no_memory_holds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"preprocess: \w+ is .*: give 1 to 16,384"):
        Preprocess.from_json(values)
