"""Model cards and pushes to a hub: what is sent, what is not, and that what was sent loads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from mmcl.cli.main import main
from mmcl.errors import UserError
from mmcl.evaluate import Report
from mmcl.evaluate.reporting.metric import Metric
from mmcl.interop.load import load_model
from mmcl.interop.model import Model
from mmcl.runs.model_card import CardContent, check_license, model_card
from mmcl.runs.publish import check_private, check_repository
from tests.interop.export import models
from tests.interop.hub import Hub, hub_here

TOKEN = "hf_" + "aB3" * 11
TEXTS = ["a cat", "the red dog on a hill"]


def report(*models_of_it: str) -> Report:
    shares = {"trained": 0.616, "before": 0.402, "untrained": 0.011, "chance": 0.005}
    return Report(
        tuple(
            Metric("retrieval", data, "text_to_image_R@1", name, shares[name], shares[name] - 0.02, shares[name] + 0.02, 800)
            for data in ("photos/new", "photos/old")
            for name in models_of_it
        )
    )


CONFIG: dict[str, Any] = {
    "method": {"name": "clip", "args": {"temperature": 0.05}},
    "init": "hf:laion/CLIP-ViT-B-32",
    "data": {
        "root": "/srv/data",
        "train": {"name": "auto", "path": "/home/someone/clients/photos", "args": {}},
        "mix": None,
    },
    "run_dir": "/home/someone/runs/a",
    "plugins": ["https://me:secret@host/a"],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose model knows where it came from, and a report with a comparison with the start."""
    model = models.own()
    model.save(tmp_path / "runs/tiny/model", provenance={"config": CONFIG, "steps": 1200, "data_fingerprint": "abc"})
    report("trained", "before", "untrained", "chance").write(tmp_path / "runs/tiny/report")
    (tmp_path / "runs/tiny/checkpoints").mkdir()
    (tmp_path / "runs/tiny/checkpoints/secret.json").write_text("{}")
    return tmp_path / "runs/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_here(monkeypatch, tmp_path / "hub_cache") as here:
        yield here


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, facts, body = text.split("---\n", 2)
    return yaml.safe_load(facts), body


def push(run: Path, *flags: str, name: str = "me/tiny") -> int:
    return main(["push", str(run), name, "--license", "cc-by-4.0", *flags])


class TestCard:
    def test_it_says_what_a_reader_needs(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["card", str(run), "--license", "cc-by-4.0"]) == 0
        assert str(run / "README.md") in capsys.readouterr().out
        facts, body = card_of(run)
        assert facts["license"] == "cc-by-4.0"
        assert facts["base_model"] == "laion/CLIP-ViT-B-32"
        assert facts["base_model_relation"] == "finetune"
        assert facts["pipeline_tag"] == "zero-shot-image-classification"
        assert facts["model-index"][0]["name"] == "tiny"
        assert {one["dataset"]["name"] for one in facts["model-index"][0]["results"]} == {"photos/new", "photos/old"}
        assert [one["metrics"][0]["value"] for one in facts["model-index"][0]["results"]] == [0.616, 0.616]
        for words in (
            "# tiny",
            "From: `hf:laion/CLIP-ViT-B-32`, whose license applies too.",
            "On: `photos`.",
            "`clip`, 1,200 steps",
            "| text_to_image_R@1 | 0.616 [0.596, 0.636] | 0.402 [0.382, 0.422] | 0.011",
            "confidence intervals",
            '"before" is the model that the training started from',
            "16 x 16 pixels",
            "after 12 tokens",
            f"fingerprint `{load_model(run).fingerprint}`",
            "mmcl train config.yaml",
            'mmcl.load_model("tiny")\n',
        ):
            assert words in body, words
        assert not re.search(r"home|someone|srv|clients|secret|run_dir|root", (run / "README.md").read_text())
        assert ModelCard.load(run / "README.md").data.license == "cc-by-4.0"

    def test_a_model_without_a_report_or_an_origin_says_so(self) -> None:
        text = model_card(CardContent(repository="me/tiny", model=models.own(), license="mit", report=Report()))
        assert "Not evaluated" in text
        assert "What it was trained on is not recorded" in text
        assert "base_model" not in text
        assert "model-index" not in text

    def test_names_of_data_do_not_become_markup(self) -> None:
        metric = Metric("retrieval", "a|b<script>", "text_to_image_R@1", "trained", 0.5, 0.4, 0.6, 8)
        text = model_card(CardContent(repository="tiny", model=models.own(), license="mit", report=Report((metric,))))
        assert not re.search(r"(?<!\\)<script", text.split("---\n", 2)[2])

    @pytest.mark.parametrize("license", ["", "CC BY 4.0", "my license", "https://a/b"])
    def test_a_license_is_an_identifier(self, license: str) -> None:
        with pytest.raises(UserError, match="give an identifier of the hub"):
            check_license(license)

    def test_the_license_has_to_be_given(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["card", str(run)]) == 2
        assert "--license" in capsys.readouterr().err
        assert not (run / "README.md").exists()


class TestPush:
    def test_what_was_sent_loads(self, run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert push(run, "--to", "own", "pt2", "--private") == 0, capsys.readouterr().err
        assert f"{hub.address}/me/tiny" in capsys.readouterr().out
        assert hub.created == [{"name": "tiny", "organization": "me", "visibility": "private"}]
        assert hub.tokens == {"Bearer hf_thetokenofthetest"}
        names = {name.removeprefix("me/tiny/") for name in hub.files}
        root = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "export.json"}
        assert names >= root | {f"pt2/{name}" for name in ("image.pt2", "text.pt2", "config.json", "export.json")}
        assert not any("checkpoint" in name or "metrics" in name for name in names)
        everything = b"".join(content for name, content in hub.files.items() if name.endswith((".json", ".md")))
        assert not re.search(rb"home|someone|clients|secret|run_dir|thetoken", everything)

        model = load_model(run)
        copy = load_model(hub.copy("me/tiny", tmp_path / "copy"))
        assert copy.fingerprint == model.fingerprint
        for name in ("hf:me/tiny", f"hf:{tmp_path / 'copy'}"):
            assert load_model(name).fingerprint == model.fingerprint
        _, body = card_of(tmp_path / "copy")
        assert 'mmcl.load_model("hf:me/tiny")' in body
        assert "hf download me/tiny --local-dir tiny" in body
        assert 'torch.export.load("tiny/pt2/image.pt2")' in body
        assert "| pt2 | fp32 |" in body

    def test_a_model_of_transformers_loads_there_by_its_name(self, hub: Hub, tmp_path: Path) -> None:
        import transformers

        theirs = models.of_transformers("clip", tmp_path / "theirs")
        assert main(["push", f"hf:{tmp_path / 'theirs'}", "me/clip", "--license", "mit", "--to", "transformers"]) == 0
        assert transformers.AutoModel.from_pretrained("me/clip").config.model_type == "clip"
        again = load_model("hf:me/clip")
        np.testing.assert_allclose(again.encode_text(TEXTS), theirs.encode_text(TEXTS), atol=1e-6)
        facts, body = card_of(hub.copy("me/clip", tmp_path / "copy"))
        assert facts["library_name"] == "transformers"
        assert 'AutoModel.from_pretrained("me/clip"' in body
        assert str(tmp_path) not in body

    def test_a_dry_run_writes_the_folder_only(
        self, run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_TOKEN")
        assert push(run, "--dry_run", "--out", str(tmp_path / "out")) == 0
        assert not hub.tokens
        assert not hub.files
        assert load_model(tmp_path / "out").fingerprint == load_model(run).fingerprint
        assert json.loads((tmp_path / "out/export.json").read_text())["target"] == "own"
        assert main(["push", str(run), "me/tiny", "--license", "mit", "--dry_run", "--out", str(tmp_path / "out")]) == 2

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (f"https://{TOKEN}@huggingface.co/me/tiny", "give the repository as USER/NAME, not as a URL"),
            ("tiny", "give the repository as USER/NAME"),
            ("../../tiny", "give the repository as USER/NAME"),
            ("me/a/b", "give the repository as USER/NAME"),
        ],
    )
    def test_a_repository_is_user_and_name(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            check_repository(name)
        assert TOKEN not in str(caught.value)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--to", "own", "own"], "give every format once"),
            (["--to", "onyx"], "--to: unknown export target 'onyx'"),
            (["--to", "open_clip"], "open_clip has no model of the image tower 'strided_cnn'"),
            (["--precision", "int8"], "own has no precision int8"),
        ],
    )
    def test_mistakes_send_nothing(
        self, flags: list[str], message: str, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert push(run, *flags) == 2
        assert message in capsys.readouterr().err
        assert not hub.created

    def test_without_a_login_nothing_begins(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("mmcl.runs.publish.get_token", lambda: None)
        assert main(["push", "nowhere", "me/tiny", "--license", "mit"]) == 2
        assert "not logged in to the hub: hf auth login" in capsys.readouterr().err

    def test_what_the_hub_refuses_is_a_line(self, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        hub.refuses = (403, "you may not\ndo this")
        assert push(run) == 2
        said = capsys.readouterr().err.strip()
        assert "me/tiny cannot be written on http://127.0.0.1" in said
        assert "\n" not in said

    def test_what_is_still_private_is_not_sent(
        self, run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("mmcl.runs.publish.model_card", lambda content: f"see {Path.home()}/notes and {TOKEN}")
        assert push(run) == 2
        said = capsys.readouterr().err
        assert "README.md would publish hf_aB3…: remove it" in said
        assert TOKEN not in said
        assert not hub.created

    def test_private_files_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx/config.json").write_text(json.dumps({"name": str(Path.home() / "models")}))
        with pytest.raises(UserError, match=r"onnx/config.json would publish"):
            check_private(tmp_path)


def test_a_saved_open_clip_model_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    """And so has one fingerprint, wherever it was loaded from."""
    one = models.of_open_clip("bert", tmp_path / "one")
    found: list[Model] = [one, load_model(f"open_clip:local-dir:{tmp_path / 'one'}", device="cpu")]
    assert found[0].fingerprint == found[1].fingerprint
    one.save(tmp_path / "saved")
    text = json.loads((tmp_path / "saved/config.json").read_text())["towers"]["text"]["encoder_args"]["config"]["text_cfg"]
    assert "tokenizer_folder" not in json.dumps(text)
