"""YAML and flags give one checked tree; every mistake is reported in one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmcl.config import (
    Config,
    OptimConfig,
    SourceConfig,
    TrainConfig,
    config_hash,
    flat_settings,
    from_dict,
    is_decisive,
    load_config,
    to_dict,
    to_yaml,
)
from mmcl.config.plain_yaml import read_yaml, write_yaml
from mmcl.errors import UserError
from tests.narrow import present

MINIMAL = """
method: {name: clip}
image: {encoder: {name: small_cnn, args: {channels: 3}}}
train: {steps: 10}
evaluate:
- {name: knn, label: digits, data: {name: digits}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(MINIMAL)
    return file


def test_yaml_round_trip(path: Path) -> None:
    config = load_config(path, ["--data.views.small", "{crop: {scale: [0.1, 0.3]}, augment: [{name: hflip}], size: 8}"])
    assert from_dict(Config, yaml.safe_load(to_yaml(config)), "again") == config


def test_flags_override_yaml_which_overrides_defaults(path: Path) -> None:
    config = load_config(path, ["--train.steps", "20", "--optim.betas", "0.8", "0.9", "--resume", "--run_dir=out"])
    assert (config.train.steps, config.optim.betas, config.resume, config.run_dir) == (20, (0.8, 0.9), True, "out")
    assert config.train.batch_size == TrainConfig().batch_size


def test_flags_reach_into_arguments_and_lists(path: Path) -> None:
    config = load_config(path, ["--image.encoder.args.channels", "1", "--evaluate.0.label", "x", "--data.train.path", "a b"])
    assert config.image is not None
    assert config.image.encoder is not None
    assert config.image.encoder.args == {"channels": 1}
    assert config.evaluate[0].label == "x"
    assert config.data.train.path == "a b"


def test_a_flag_begins_a_list_that_a_file_does_not_have(path: Path) -> None:
    config = load_config(path, ["--optim.groups.0.match", "^text", "--optim.groups.0.lr", "1e-5"])
    assert [(group.match, group.lr) for group in config.optim.groups] == [("^text", 1e-5)]
    with pytest.raises(UserError, match=r"optim\.groups has entries 0 to 0, not '1'"):
        load_config(path, ["--optim.groups.0.match", "^text", "--optim.groups.0.lr", "1e-5", "--optim.groups.1.lr", "1"])


@pytest.mark.parametrize("text", ["5e-2", "+5E-2", ".5e-1", "5.e-2", "50e-3", "0.05"])
def test_numbers_with_exponents_are_numbers_in_arguments_too(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"base: simclr_digits\nmethod: {{name: simclr, args: {{temperature: {text}}}}}\n")
    for config in (load_config(file), load_config("simclr_digits", ["--method.args.temperature", text])):
        assert config.method.args == {"temperature": 0.05}


@pytest.mark.parametrize("text", ["5e-2", "1e3", ".5e+1", "e5", "5e", "1_0e2", "0x5e-4", "5e-2x", "yes", "1e999"])
def test_texts_stay_texts_when_they_are_written_and_read(text: str) -> None:
    assert read_yaml(write_yaml({"name": text, "list": [text]})) == {"name": text, "list": [text]}
    assert read_yaml(write_yaml({"name": text, "list": [text]}, compact=True)) == {"name": text, "list": [text]}


@pytest.mark.parametrize("text", ["5e-4", "0.0005", "5.0e-4"])
def test_numbers_as_people_write_them(path: Path, text: str) -> None:
    assert load_config(path, ["--optim.lr", text]).optim.lr == 5e-4
    path.write_text(MINIMAL + f"optim: {{lr: {text}}}\n")
    assert load_config(path).optim.lr == 5e-4


def test_run_dir_defaults_to_the_name_of_the_file(path: Path) -> None:
    assert load_config(path).run_dir == "runs/tiny"


def test_what_decides_a_run_is_not_where_it_is_written(path: Path) -> None:
    before = flat_settings(load_config(path))
    after = flat_settings(load_config(path, ["--run_dir", "elsewhere", "--resume", "--data.workers", "3", "--train.seed", "1"]))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"run_dir", "resume", "data.workers", "train.seed"}
    assert {key for key in changed if is_decisive(key)} == {"train.seed"}


def test_the_hash_is_that_of_what_decides(path: Path) -> None:
    hashed = [config_hash(load_config(path, flags)) for flags in ([], ["--data.workers", "3"], ["--train.seed", "1"])]
    assert hashed[0] == hashed[1] != hashed[2]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--optim.learning_rate", "1"], "--optim.learning_rate: unknown setting; did you mean --optim.lr?"),
        (["--train.step", "1"], "did you mean --train.steps?"),
        (["--train.steps", "many"], "--train.steps must be a whole number, not 'many'"),
        (["--train.steps", "1.5"], "must be a whole number"),
        (["--train.steps", "true"], "must be a whole number"),
        (["--train.steps", "0"], "train.steps is 0"),
        (["--optim.lr", "fast"], "--optim.lr must be a number, not 'fast'"),
        (["--optim.lr", "-1"], "optim.lr is -1"),
        (["--optim.betas", "0.9"], "betas needs 2 values"),
        (["--train.precision", "fp8"], "choose one of 'auto', 'fp32', 'bf16', 'fp16'"),
        (["--method.args", "3"], "must be a mapping"),
        (["--train.steps.more", "3"], "train.steps is a single value"),
        (["--evaluate.3.label", "x"], "entries 0 to 0"),
        (["--image", "null"], "nothing to train"),
        (["--init", "runs/x"], "exclude each other"),
        (["--data.cache", "true", "--data.crop.scale", "0.5", "1"], "exclude each other"),
        (["--data.cache", "true", "--data.views.b.crop.scale", "0.5", "1"], "exclude each other"),
        (["--data.views.small.size", "8"], "data.views.small.size needs a crop"),
        (["--data.views.small.crops.scale", "1"], "did you mean --data.views.small.crop.scale?"),
        (["--optim.momentum", "0.5"], "optim.momentum is 0.5: optim.name adamw does not use it"),
        (["--optim.name", "sgd", "--optim.weight_decay", "0", "--optim.betas", "0.9", "0.99"], "sgd does not use it"),
        (["--optim.name", "lars", "--optim.weight_decay", "0", "--optim.muon_lr", "0.02"], "lars does not use it"),
        (["--optim.name", "sgd"], "optim.weight_decay is 0.2: sgd adds it to the gradient"),
        (["--optim.milestones", "0.8", "0.6"], "optim.milestones is [0.8, 0.6]: give rising shares"),
        (["--optim.milestones", "0.5", "--optim.final_lr", "0.1"], "it is not used with optim.milestones"),
        (["--data.labels", "1.5"], "data.labels is 1.5: give a share"),
        (["--evaluate.0.data", "null"], "evaluate.0.data is missing"),
        (["--evaluate", "[{name: knn, label: x, every: 1}, {name: knn, label: x}]"], "evaluate.1 and evaluate.0 are both knn"),
        (["--evaluate", "[{name: knn, label: a/b}, {name: map, label: x}, {name: knn, label: a b}]"], "'a b' and 'a/b'"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_named(path: Path, flags: list[str], named: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(path, flags)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "method: {}\ntrain: {steps: 1}"])
def test_broken_files_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"broken\.yaml") as error:
        load_config(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_lists_its_neighbors(path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.yaml"):
        load_config(path.parent / "tinny.yaml")


def test_to_dict_is_plain(path: Path) -> None:
    assert yaml.safe_load(yaml.safe_dump(to_dict(load_config(path)))) == to_dict(load_config(path))


def test_a_base_says_what_a_file_does_not(path: Path) -> None:
    top = path.parent / "top.yaml"
    top.write_text(
        "base: tiny.yaml\n"
        "method: {name: siglip}\n"
        "image: {encoder: {args: {width: 8}}, head: {name: linear}}\n"
        "train: {epochs: 2, steps: null}\n"
        "evaluate: []\n"
    )
    config = load_config(top)
    assert config.method.name == "siglip"
    assert config.image is not None
    assert to_dict(config.image.encoder) == {"name": "small_cnn", "args": {"channels": 3, "width": 8}}
    assert config.train.epochs == 2
    assert config.train.steps is None
    assert config.evaluate == ()
    assert config.run_dir == "runs/top"


def test_a_component_of_another_name_keeps_no_arguments_of_the_base(path: Path) -> None:
    top = path.parent / "top.yaml"
    top.write_text("base: tiny.yaml\nimage: {encoder: {name: strided_cnn, args: {image_size: 8}}}\n")
    config = load_config(top)
    assert config.image is not None
    assert config.image.encoder is not None
    assert config.image.encoder.args == {"image_size": 8}


def test_null_takes_out_what_a_base_says(path: Path) -> None:
    top = path.parent / "top.yaml"
    top.write_text("base: tiny.yaml\ndata: {train: null, mix: {photos: {path: a}, drawings: {path: b}}}\noptim:\n")
    config = load_config(top)
    assert config.optim == OptimConfig()
    assert config.data.train == SourceConfig()
    assert config.training_parts.keys() == {"data.mix.photos", "data.mix.drawings"}
    assert load_config(path, ["--optim", "null"]).optim == OptimConfig()
    assert load_config(path, ["--data.train.args", "null", "--data.views", "null"]).data.train.args == {}
    for flags, named in ((["--method", "null"], "method: the key 'name' is missing"), (["--train", "null"], "train.steps")):
        with pytest.raises(UserError, match=named):
            load_config(path, flags)


@pytest.mark.parametrize(
    ("base", "named"), [("none.yaml", "there is no configuration"), ("[1]", "base is [1]"), ("top.yaml", "not based on")]
)
def test_a_bad_base_is_named(path: Path, base: str, named: str) -> None:
    top = path.parent / "top.yaml"
    top.write_text(f"base: {base}\n")
    with pytest.raises(UserError) as error:
        load_config(top)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


class TestMix:
    YAML = "method: {name: clip}\nimage: {encoder: {name: small_cnn}}\ntrain: {steps: 1}\n"

    def load(self, tmp_path: Path, data: str) -> Config:
        (tmp_path / "a.yaml").write_text(f"{self.YAML}data: {data}\n")
        return load_config(tmp_path / "a.yaml")

    def test_parts_by_name(self, tmp_path: Path) -> None:
        emoji = "{name: emoji, weight: 1, args: {fold: all}}"
        config = self.load(tmp_path, f"{{mix: {{photos: {{path: a, weight: 2}}, emoji: {emoji}}}}}")
        assert present(config.data.mix)["emoji"].args == {"fold": "all"}
        settings = flat_settings(config)
        assert settings["data.mix.photos.weight"] == 2.0
        assert not is_decisive("data.mix.photos.path")
        assert is_decisive("data.mix.photos.weight")
        assert is_decisive("data.mix.photos.args.path")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("{mix: {}}", "name at least one dataset"),
            ("{mix: {a: {path: x}}, train: {path: y}}", r"data\.mix and data\.train exclude each other"),
            ("{mix: {a: {path: x}}, samples_per_class: 2}", r"data\.mix and data\.samples_per_class exclude each other"),
            ("{mix: {a: {path: x}}, hard_batches: {}}", r"data\.mix and data\.hard_batches exclude each other"),
            ("{mix: {a: {path: x, weight: 0}}}", r"data\.mix\.a\.weight is 0\.0: give null or a number above 0"),
            ("{mix: {a: {path: x, weight: 1}, b: {path: y}}}", r"data\.mix\.b: give every part a weight"),
            ("{mix: {a: {path: x, weight: 1, epochs: 2}}}", r"data\.mix\.a: give every part a weight"),
            ("{mix: {a-b: {path: x}}}", "use letters, digits and underscores"),
            ("{mix: {a: {path: x, wieght: 1}}}", "did you mean 'weight'"),
        ],
    )
    def test_mistakes(self, data: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=message):
            self.load(tmp_path, data)
