"""Mistakes that newcomers make on the command line, each with the words of the line that helps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mmcl.cli.main import main
from mmcl.config import load_config
from mmcl.runs.run import train
from tests.engine.tiny import YAML, make_folder

# Words of the command line, and a pattern of the message. The folder has: photos/ without captions, labeled/ with a folder
# for each class, squares/ with captions, broken/ with no readable image, empty/, runs/a, and runs/unfinished without a model.
SETTINGS = {
    "train --lr 1e-3": r"--lr: unknown setting; did you mean --optim\.lr\?",
    "train --learning-rate 1e-3": r"did you mean --optim\.lr\?",
    "train --batch-size 8": r"did you mean --train\.batch_size\?",
    "train --out here": r"did you mean --run_dir\?",
    "train --train.step 9": r"did you mean --train\.steps\?",
    "train --train.stepps.more 9": r"did you mean --train\.steps\.more\?",
    "train --train.frog 9": r"--train\.frog: unknown setting; see `mmcl train --help_all`",
    "train --train.steps ten": r"--train\.steps must be a whole number, not 'ten'",
    "train --train.steps": r"--train\.steps must be a whole number, not True",
    "train --optim.betas 0.9": r"--optim\.betas needs 2 values",
    "train -lr 1e-3": r"-lr: settings begin with two dashes",
    "train --train.steps 5 -lr 1e-3": r"-lr: settings begin with two dashes",
    "train tiny.yaml squares": r"unexpected 'squares': mmcl train takes \[CONFIG\]; settings are flags",
    "train clip_emojii": r"unknown configuration 'clip_emojii'; did you mean 'clip_emoji' .*mmcl list configs",
    "train CLIP_EMOJI": r"did you mean 'clip_emoji'",
    "train --device cuda": r"takes the GPU if there is one; the variable CUDA_VISIBLE_DEVICES",
    "train --gpus 2": r"torchrun --nproc_per_node 2 -m mmcl train",
    "train --run_dir photos": r"run_dir photos: holds images, such as blue_huge\.png; give a folder of its own",
    "train --run_dir run.json": r"run_dir run\.json: a folder is written; give a name without \.json",
    "train tiny.yaml --image.encoder.name Small_CNN": r"did you mean 'small_cnn'\?",
    "train frog": r"unknown configuration 'frog'; shipped ones have names: `mmcl list configs`",
    "train tini.yaml": r"there is no configuration tini\.yaml; did you mean tiny\.yaml\?",
    "train photos/": r"photos is a folder, .*mmcl train clip_finetune --data\.train\.path photos",
    "train runs/a": r"runs/a is a run directory; its configuration is runs/a/config\.yaml, and --resume",
    "train .": r"\. is a folder; give one of its configurations, such as",
    "train captions.txt": r"captions\.txt must contain a mapping of settings",
    "train --data.train.path photos/": r"add --data\.train\.name auto .*clip_finetune",
    "train clip_finetune --init runs/a": r"--data\.train\.path photos/ to train on it",
    "train tiny.yaml --data.train.path nowhere": r"nowhere: no such file or folder",
    "train tiny.yaml --data.train.path empty": r"empty: is empty",
    "train tiny.yaml --data.train.name folder --data.train.path empty": r"empty: is empty",
    "train tiny.yaml --data.train.path photos": r"no captions, .*captions\.csv with the columns image, caption",
    "train tiny.yaml --data.train.path photos --data.holdout 0.1": r"no captions, .*captions\.csv",
    "train tiny.yaml --data.train.path labeled --data.holdout 0.1": r'--data\.templates "a photo of a \{\}"',
    "train tiny.yaml --data.train.path squares/red_tiny.png": r"is one image; give the folder it is in",
    "train tiny.yaml --data.augment '[{name: rotate}]'": r"did you mean 'affine' with args \{rotation: 10\}\?",
    "train tiny.yaml --data.augment '[{name: RandomResizedCrop}]'": r"did you mean 'crop'\?",
    "train tiny.yaml --data.augment blur": r"keys name, args, such as \{name: blur\}$",
    "train tiny.yaml --evaluate none": r"must be a mapping with .*; a list without any is \[\]$",
    "train --data.train.args.vendors noto": r"vendors of data source 'emoji' must be a list, such as \['noto'\], not 'noto'",
    "train simclr_digits --method.args.temperature nan": r"must be a number, not 'nan'",
    "train simclr_digits --method.args.temperature 0": r"method\.args\.temperature is 0: give a number above 0",
    "train tiny.yaml --image.encoder.name vit_b_16": r"did you mean 'torchvision' with args \{name: vit_b_16\}\?",
    "train tiny.yaml --image.encoder.name google/vit-base": r"'transformers' with args \{name: google/vit-base\}",
    "train tiny.yaml --train.trackers wandb": r"pip install 'mmcl\[wandb\]', or in a clone pip install -e '\.\[wandb\]'",
    "train simclr_mnist": r"MMCL_DATA_ROOT; the configurations of emoji and digits need no download",
    "train --config tiny.yaml": r"CONFIG is given without --config: mmcl train \[CONFIG\]",
    "doctor tiny.yaml --proceses 2": r"--proceses: unknown setting",
    "doctor tiny.yaml --processes two": r"--processes: 'two' is not a whole number",
    "config clip_emojy": r"did you mean 'clip_emoji'",
}
VERBS = {
    "trian": r"unknown verb 'trian'; did you mean 'train'\?",
    "evaluate runs/a": r"unknown verb 'evaluate'; did you mean 'eval'\?",
    "--model runs/a search": r"the verb comes first: mmcl VERB --model",
    "list method": r"KIND: 'method' is unknown; did you mean methods\?",
    "list frog": r"KIND: 'frog' is unknown; give all, configs, methods, .* or models",
    "list methods frog": r"no methods with 'frog' in it; `mmcl list methods`",
    "data photos verify": r"the verb comes first: mmcl data verify photos",
    "data photos": r"mmcl data verify photos",
    "data verfy photos": r"unknown verb 'verfy'; did you mean 'verify'\?",
    "data": r"mmcl data needs a verb: index, verify, stats, preview",
    "data verify runs/a": r"runs/a: is a run directory, not data",
    "data stats empty": r"empty: is empty",
    "data preview photos sheet.xyz": r"OUT sheet\.xyz: give a file that ends in \.png or \.jpg",
    "data preview photos": r"OUT is missing, as in mmcl data preview photos/ sheet\.png",
    "data preview photos new/sheet.png": r"there is no folder new; make it",
    "embed photos --out new/e.parquet": r"there is no folder new; make it",
    "embed photos": r"--out is missing, as in mmcl embed photos/ --out photos\.parquet",
    "embed broken --out e.parquet --model runs/a": r"none of 2 images can be read; the first: broken/a\.png",
    "embed photos --out e.parquet --model runs/unfinished": r"it is not finished .*: mmcl train runs/unfinished/config\.yaml",
    "compare photos runs/a": r"photos: no report here",
    "compare runs/a runs/a": r"runs/a is given twice: .*--models untrained trained",
    "completion tcsh": r"SHELL: 'tcsh' is unknown; give bash, zsh or fish",
    "completion Bash": r"did you mean bash\?",
    "versions": r"unknown verb 'versions'",
    "compare runs/a": r"B is missing, as in mmcl compare runs/",
    "compare runs/unfinished runs/a": r"runs/unfinished: .* it is not finished \(mmcl watch runs/unfinished\)",
    "compare runs/zz runs/a": r"runs/zz: no such run; `mmcl train` makes one",
    "compare runs runs/a": r"runs: holds runs; give one of them, such as runs/a",
    "watch runs": r"runs: holds runs; give one of them, such as runs/a",
    "watch runs/aa": r"runs/aa: no such run; did you mean runs/a\?",
    "watch photos": r"photos: not a run directory; one has config\.yaml and model/",
    "example photos": r"photos has files already",
    "example new --kind class": r"--kind: 'class' is unknown; did you mean classes\?",
}
MODELS = {
    "eval knn --model runs/a --data labeled": r"give --bank, or `bank` in the configuration",
    "eval knn --bank labeled": r"needs --model and --data \(a path.* or --embeddings",
    "eval knn --model runs/a": r"knn needs --data \(a path, or one of `mmcl list sources`\)$",
    "eval knn --data squares": r"knn needs --model$",
    "eval knn --model runs/a --data squares --bank digit": r"did you mean the source 'digits'\?",
    "eval": r"RUN is missing, as in mmcl eval runs/clip_emoji",
    "eval runs/a --data squares": r"--data needs an evaluator: mmcl eval retrieval --model RUN --data DATA",
    "eval --model runs/a": r"--model needs an evaluator",
    "eval runs/a --out photos": r"--out photos: holds images, such as blue_huge\.png",
    "eval map --model runs/a --data photos --out map.png": r"--out map\.png: a folder is written; give a name without \.png",
    "eval runs": r"runs: holds runs; give one of them, such as runs/a",
    "eval knnn --model runs/a": r"'knnn' is neither a run directory nor an evaluator; did you mean 'knn'\?",
    "eval Retrieval --model runs/a --data squares": r"did you mean 'retrieval'\?",
    "eval knn --modell runs/a": r"unknown flag --modell: did you mean --model\?",
    "eval knn -model runs/a": r"unknown flag -model: did you mean --model\?",
    "eval knn runs/a --data labeled": r"unexpected 'runs/a': .* takes no positional arguments; the rest are flags: --model,",
    "embed photos runs/a --out e.parquet": r"unexpected 'runs/a': mmcl embed takes DATA; the rest are flags: --model",
    "eval knn --labels a b": r"unknown flag --labels.*\(see mmcl eval knn --help\)",
    "eval retrieval --model runs/a --data photos": r"no sample has a caption",
    "eval runs/none": r"runs/none: no such run; `mmcl train` makes one",
    "eval runs/unfinished": r"it is not finished \(mmcl watch runs/unfinished\); .*--resume",
    "eval photos": r"photos: neither a run nor a model folder",
    "eval suite cats.yaml --models runs/a": r"no such suite; shipped ones have names, such as eval/emoji",
    "eval suite eval/emogi --models runs/a": r"did you mean 'eval/emoji'",
    "eval zero-shot --model runs/a --data photos": r"has no label|no class names",
    "search 'a cat' --images photos": r"'a cat' was taken for the model, and there is nothing to look for: mmcl search",
    "search runs/a --images photos": r"nothing to look for in 'runs/a': give a text in quotes",
    "search nothing.mmcl cat": r"nothing\.mmcl: no such index; `mmcl index build IMAGES --out nothing\.mmcl` makes one",
    "search 'a cat' nothing.mmcl": r"nothing\.mmcl: no such index",
    "search nothing.mmcl": r"nothing to look for in 'nothing\.mmcl'",
    "serve nothing.mmcl/": r"nothing\.mmcl/: no such index",
    "search cats.mmcl cat": r"cats\.mmcl: is a file, and an index is a folder; give a folder that `mmcl index build",
    "index sync nothing.mmcl": r"nothing\.mmcl: no such index; `mmcl index build",
    "index status empty": r"empty: holds no index; give a folder that `mmcl index build",
    "index import nothing --out new.mmcl": r"nothing: no such index",
    "index export cats.mmcl --out rows.csv": r"cats\.mmcl: is a file, and an index is a folder",
    "dedup nothing.mmcl": r"nothing\.mmcl: no such index",
    "search a cat": r"a: neither a run nor a model folder; did you mean runs/a\?",
    "search runs/a/config.yaml cat": r"runs/a/config\.yaml: a file of a run; give the run, runs/a$",
    "search runs/a ''": r"nothing to look for",
    "search --model runs/a cat": r"MODEL is given without --model: mmcl search MODEL \[TEXT\]",
    "search runs/a a cat": r"unexpected 'cat': mmcl search takes MODEL \[TEXT\]; .*needs quotes",
    "search runs/a cat --top_k": r"--top_k: expected one argument",
    "search runs/a cat --topk 3": r"unknown flag --topk: did you mean --top_k\?",
    "search runs/aa cat": r"did you mean runs/a\?",
    "search runs/a cat --save runs/a": r"runs/a: holds .*, and no index of mmcl; give a new folder",
    "search runs/a cat --save photos": r"photos: holds .*, and no index of mmcl; give a new folder",
    "search runs/a cat --picture found.txt": r"--picture found\.txt: give a file that ends in",
    "search runs/a cat --images squares/*.png": r"squares/\*\.png: no such file or folder",
    "search runs/a --image photos": r"photos: is not a file",
    "search runs/clip_emoji cat": r"runs/clip_emoji: no such run; `mmcl train clip_emoji` makes it",
    "search runs/simclr_digits cat": r"runs/simclr_digits: no such run; `mmcl train simclr_digits` makes it",
    "search runs/a cat --target text": r"--target: 'text' is unknown; did you mean texts\?",
    "search runs/a cat --image https://a.org/b.png": r"https://a\.org/b\.png is on a server, .*; download it first",
    "search runs/a cat --images runs/a": r"runs/a: is a run directory, not data",
    "search runs/a cat --device cuda:99": r"device 'cuda:99' is not available; this machine has cpu",
    "search runs/a cat --device gpu": r"device 'gpu' is unknown; this machine has cpu",
    "classify squares/red_tiny.png --model runs/a": r"give --labels",
    "classify squares/red_tiny.png --model runs/a --labels": r"--labels: expected at least one argument",
    "classify squares/red_tiny.png --model runs/a --labels cat": r"one label alone is always 100 %",
    "classify squares/red_tiny.png --model runs/a --labels a --labels b": r"--labels is given twice: give all its values",
    "classify --model runs/a --labels a b squares/red_tiny.png": r"no image given; images stand before the labels",
    "classify http://a.org/b.png --labels a b": r"IMAGES: http://a\.org/b\.png is on a server, .*; download it first",
    "classify photos --labels a b": r"runs/clip_emoji: no such run; `mmcl train clip_emoji` makes it",
    "classify empty --model runs/a --labels a b": r"empty: this folder has no images",
    "classify broken --model runs/a --labels a b": r"none of 2 images can be read; the first: broken/a\.png",
    "classify squares/RED_tiny.png --model runs/a --labels a b": r"squares/RED_tiny\.png",
    "classify squares/captions.csv --model runs/a --labels a b": r"squares/captions\.csv",
    "classify photos --model runs/a --labels a b --out found.xlsx": r"found\.xlsx: give a file that ends in \.csv or \.json",
    "classify photos --model hf:openai/clip-vit-base-patch32 --labels a b": r"HF_HUB_OFFLINE is set, and it is not",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    squares = make_folder(place / "squares")
    for folder in ("photos", "labeled/cats", "labeled/dogs"):
        (place / folder).mkdir(parents=True)
        for name in ("red_tiny.png", "blue_huge.png", "green_small.png"):
            shutil.copy(squares / name, place / folder / name)
    (place / "empty").mkdir()
    (place / "cats.mmcl").write_text("no index")
    (place / "broken").mkdir()
    for name in "ab":
        (place / "broken" / f"{name}.png").write_bytes(b"nothing")
    (place / "captions.txt").write_text("a red square\n")
    (place / "tiny.yaml").write_text(YAML)
    run = ["--data.train.path", str(squares), "--run_dir", str(place / "runs" / "a"), "--train.steps", "1"]
    train(load_config(place / "tiny.yaml", run))
    (place / "runs" / "unfinished" / "checkpoints").mkdir(parents=True)
    shutil.copy(place / "runs" / "a" / "config.yaml", place / "runs" / "unfinished")
    return place


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.parametrize(("line", "said"), [*SETTINGS.items(), *VERBS.items(), *MODELS.items()])
def test_a_mistake_is_one_line_that_helps(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torchvision.datasets.utils.urlretrieve", refused, raising=False)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refused, raising=False)
    words = split(line)
    if words[0] == "train" and "--run_dir" not in words:
        words += ["--run_dir", str(tmp_path / "run")]
    assert main(words) == 2
    heard = capsys.readouterr().err.strip().splitlines()
    assert heard[-1].startswith("error: ")
    assert re.search(said, heard[-1]), heard[-1]


def refused(*_: object, **__: object) -> None:
    raise OSError("no network")


def split(line: str) -> list[str]:
    """Words of a line; a shell without a match leaves `*.png` as it is."""
    return shlex.split(line)


def run_json(capsys: pytest.CaptureFixture[str], line: str) -> list[dict]:  # type: ignore[type-arg]
    assert main([*split(line), "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("labels", ["red,blue", "red, blue", "red blue", "'red,blue,'"])
def test_labels_may_have_commas_between_them(labels: str, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run_json(capsys, f"classify squares/red_tiny.png --model runs/a --labels {labels}")
    assert {one["label"] for one in row["labels"]} == {"red", "blue"}


def test_a_comma_in_one_of_several_labels_belongs_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run_json(capsys, "classify squares/red_tiny.png --model runs/a --labels 'red, tiny' blue")
    assert {one["label"] for one in row["labels"]} == {"red, tiny", "blue"}


def test_text_and_model_may_change_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "search runs/a red --images squares") == run_json(capsys, "search red runs/a --images squares")


def test_the_evaluator_may_stand_behind_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    expected = run_json(capsys, "eval retrieval --model runs/a --data squares")
    assert run_json(capsys, "eval --model runs/a --data squares retrieval") == expected


def test_home_and_slashes_and_spaces_are_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(place))
    shutil.copytree("photos", "my photos", dirs_exist_ok=True)
    for line in ("data stats photos/", "data stats ~/photos", "data stats 'my photos'", "data verify ~/'my photos'/"):
        assert main(split(line)) == 0
    rows = run_json(capsys, "classify '~/my photos' --model ~/runs/a --labels a b") if capsys.readouterr() else []
    assert [Path(row["image"]).name for row in rows] == ["blue_huge.png", "green_small.png", "red_tiny.png"]


def test_classify_takes_folders_and_writes_what_the_suffix_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table, listing = tmp_path / "labels.csv", tmp_path / "labels.json"
    for out in (table, listing):
        with pytest.raises(SystemExit, match=r"^1$"):
            main(split(f"classify photos broken/a.png --model runs/a --labels red blue --out {out}"))
        said = capsys.readouterr()
        assert said.out == f"3 images in {out}\n"
        assert said.err.startswith("left out: broken/a.png")
    rows = json.loads(listing.read_text())
    assert [row["image"] for row in rows] == ["photos/blue_huge.png", "photos/green_small.png", "photos/red_tiny.png"]
    lines = [line.split(",") for line in table.read_text().splitlines()]
    assert lines[0] == ["image", "label", "score"]
    flat = [[row["image"], one["label"], str(one["score"])] for row in rows for one in row["labels"]]
    assert lines[1:] == flat


def test_a_component_of_another_name_has_no_arguments_of_the_first() -> None:
    config = load_config("clip_emoji", ["--image.encoder.name", "timm", "--image.encoder.args.name", "resnet18"])
    assert config.image is not None
    assert config.image.encoder is not None
    assert config.image.encoder.args == {"name": "resnet18"}
    same = load_config("clip_emoji", ["--image.encoder.name", "strided_cnn", "--image.encoder.args.image_size", "48"])
    assert same.image is not None
    assert same.image.encoder is not None
    assert same.image.encoder.args.keys() > {"image_size", "widths"}
    data = load_config("clip_emoji", ["--data.train.path", "photos", "--data.train.name", "auto"]).data.train
    assert (data.name, data.path, data.args) == ("auto", "photos", {})
