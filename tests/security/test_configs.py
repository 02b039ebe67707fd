"""Any content of a configuration file or flag gives a configuration that survives a round trip, or one line of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmcl.config import Config, config_hash, from_dict, load_config, to_dict, to_yaml
from mmcl.config.plain_yaml import read_yaml
from mmcl.errors import UserError
from mmcl.runs.evaluation import read_config

ROOT = Path(__file__).parents[2]
FUZZ = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.dates(),
    st.sampled_from(["HUGE", -(2**63), 2**63 - 1, "1e999", "nan", "-inf", "5e-4", "\ud800", "\0", "a\nb", "x" * 10**5, ""]),
)
NAMES = st.sampled_from(["method", "image", "data", "train", "evaluate", "views", "name", "args", "steps", "base", "0"])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES | SCALARS, inner, max_size=3)),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs") / "fuzzed.yaml"


def check(file: Path, flags: list[str] | None = None) -> None:
    said = ""
    try:
        config = load_config(file, flags or [])
    except UserError as error:
        said = str(error)
    if said:
        assert len(said.splitlines()) == 1
        return
    text = to_yaml(config).encode("utf-8").decode("utf-8")
    again = from_dict(Config, read_yaml(text), "again")
    assert again == config
    assert config_hash(again) == config_hash(config)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every node of a tree, inner ones included."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, child in children for found in leaves(child, (*path, key)))]


WHOLE = to_dict(load_config(ROOT / "configs" / "clip_emoji.yaml"))
PATHS = leaves(WHOLE)[1:]


@FUZZ
@given(tree=TREES)
def test_any_tree(file: Path, tree: Any) -> None:
    write(file, tree)
    check(file)


@FUZZ
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), TREES), min_size=1, max_size=2))
def test_any_value_in_the_place_of_another(file: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    tree = to_dict(load_config(ROOT / "configs" / "clip_emoji.yaml"))
    for (*parents, last), value in changes:
        node = tree
        try:
            for key in parents:
                node = node[key]
            node[last] = value
        except (TypeError, KeyError, IndexError):
            continue  # the first change took the place of the second away
    write(file, tree)
    check(file)


def write(file: Path, tree: Any) -> None:
    """Writes a tree; in the place of HUGE, an integer of more digits than Python writes in decimals."""
    file.write_text(yaml.safe_dump(tree, allow_unicode=False).replace("HUGE", hex(10**5000)))


@FUZZ
@given(content=st.binary(max_size=60) | st.text(alphabet="abn:-[]{}&*!?'\"#|> \n\t0189.e~", max_size=60).map(str.encode))
def test_any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    check(file)


@FUZZ
@given(words=st.lists(st.text(max_size=12) | st.sampled_from(["--train.steps", "--a.b", "--evaluate.²", "--", "--=", "1e5"])))
def test_any_flags(words: list[str]) -> None:
    check(ROOT / "configs" / "clip_emoji.yaml", words)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train: {steps: 2001-99-99}", "not valid YAML"),
        (f"train: {{steps: {'9' * 5000}}}", "not valid YAML"),
        (f"train: {{steps: 0x{'f' * 5000}}}", "give a finite number below 2^63"),
        ("optim: {lr: .nan}", "optim: lr is nan: give a finite number"),
        ("optim: {lr: 1e999}", "lr is inf: give a finite number below 2^63"),
        ("optim: {clip: .inf}", "optim: clip is inf: give a finite number"),
        ("optim: {betas: [0.9, 1.5]}", "optim.betas is [0.9, 1.5]"),
        ("optim: {weight_decay: -1}", "optim.weight_decay is -1"),
        ("optim: {eps: 0}", "optim.eps is 0"),
        ("method: {name: clip, args: {a: .inf}}", "method: args.a is inf: give a finite number"),
        ("method: {name: clip, args: {since: 2001-01-01}}", "put it in quotes"),
        ("method: {name: clip, args: {some: !!set {a, b}}}", "a set: put it in quotes"),
        ("method: {name: clip, args: &a {again: *a}}", "contains itself"),
        (f"method: {'[' * 1500}", "fuzzed.yaml"),
        (r'run_dir: "a\0b"', "not valid Unicode"),
        (r'run_dir: "\ud800"', "not valid Unicode"),
        (r'"a\nb": 1', "unknown key"),
        (r'data: {views: {"a\nb": 3}}', "must be a mapping"),
        ("method: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_what_fuzzing_found(file: Path, setting: str, said: str) -> None:
    key = setting.partition(":")[0]
    defaults = {"method": "{name: clip}", "image": "{encoder: {name: small_cnn}}", "train": "{steps: 1}"}
    file.write_text("\n".join([*(f"{name}: {value}" for name, value in defaults.items() if name != key), setting]))
    with pytest.raises(UserError) as error:
        load_config(file)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_bytes_that_are_not_text(file: Path) -> None:
    file.write_bytes(b"method: \xff\xfe")
    with pytest.raises(UserError, match=r"fuzzed\.yaml is not valid YAML"):
        load_config(file)


def test_a_run_with_a_damaged_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"method: \xff\xfe")
    with pytest.raises(UserError, match=r"config\.yaml is not valid YAML"):
        read_config(tmp_path)
