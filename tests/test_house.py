"""Rules for the code: sizes, names, docstrings, examples and imports, for every file of the package."""

from __future__ import annotations

import ast
import doctest
import functools
import gc
import graphlib
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import mmcl
from mmcl import evaluate, losses
from tests.faults.runs import small_vocabulary

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "mmcl").rglob("*.py"))
OTHERS = [path for folder in ("examples", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
_STATEMENTS = ("body", "orelse", "handlers", "finalbody", "cases")
"""Fields of a node that hold statements, or what statements are within."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [module_name(path) for path in FILES if path.name != "__main__.py"]
PUBLIC = sorted(
    {
        value
        for module in (mmcl, losses, evaluate)
        for value in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(value) or inspect.isfunction(value)
    },
    key=lambda value: value.__qualname__,
)


@functools.cache
def tree(path: Path) -> ast.Module:
    gc.disable()  # all nodes are kept: looking for garbage among them takes longer than parsing
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


@functools.cache
def functions(path: Path) -> list[Function]:
    """Those of a file, found among its statements: a function is no part of an expression, which most nodes are."""
    found: list[Function] = []
    below: list[ast.AST] = [tree(path)]
    while below:
        node = below.pop()
        found += [node] if isinstance(node, Function) else []
        below += [child for field in _STATEMENTS for child in getattr(node, field, ())]
    return found


def place(path: Path, node: Function) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def lines_of_code(node: Function) -> int:
    """Those of the signature and the body. A docstring has a public function's shapes, errors and example; it may be long."""
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    skipped = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (node.end_lineno or 0) - node.lineno + 1 - skipped


@pytest.mark.parametrize(("files", "most"), [(FILES + OTHERS, 400), (TESTS, 450)], ids=["package", "tests"])
def test_a_file_is_read_in_one_sitting(files: list[Path], most: int) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_a_function_fits_on_a_screen() -> None:
    every = ((path, node) for path in FILES + OTHERS + TESTS for node in functions(path))
    assert [place(path, node) for path, node in every if lines_of_code(node) > 80] == []


def test_every_argument_and_result_is_annotated() -> None:
    """mypy says so too, but of no file that is left out of its settings, nor of a function without any annotation."""
    missing = []
    for path in FILES + OTHERS:
        for node in functions(path):
            given = node.args
            extra = [one for one in (given.vararg, given.kwarg) if one is not None]
            named = [one for one in (*given.posonlyargs, *given.args, *given.kwonlyargs) if one.arg not in ("self", "cls")]
            without = [one.arg for one in (*named, *extra) if one.annotation is None]
            if without or (node.returns is None and node.name != "__init__"):
                missing.append((place(path, node), *without))
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_found_by_its_name(name: str) -> None:
    """`import mmcl.a.b as m` takes the attribute `b` of `mmcl.a`, which a function of this name would hide."""
    found = functools.reduce(getattr, name.split(".")[1:], importlib.import_module(name) and mmcl)
    assert isinstance(found, types.ModuleType)
    assert found is importlib.import_module(name)


def own(module: types.ModuleType) -> dict[str, object]:
    """Its public classes and functions, and those of its public classes."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        is_own = inspect.isclass(value) or inspect.isfunction(value)
        if name.startswith("_") or not is_own or value.__module__ != module.__name__:
            continue
        found[name] = value
        if inspect.isclass(value):
            members = [member for member in vars(value) if not member.startswith("_")]
            statics = {f"{name}.{member}": inspect.getattr_static(value, member) for member in members}
            kinds = (property, functools.cached_property, classmethod, staticmethod, types.FunctionType)
            found |= {member: static for member, static in statics.items() if isinstance(static, kinds)}
    return found


def has_docstring(module: types.ModuleType, name: str) -> bool:
    """An override has that of its base, which says what all of them do."""
    owner, _, member = name.rpartition(".")
    bases = inspect.getmro(getattr(module, owner)) if owner else (module,)
    return any(inspect.getdoc(vars(base)[member]) for base in bases if member in vars(base))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert [public for public in own(module) if not has_docstring(module, public)] == []


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: value.__qualname__)
def test_a_public_name_shows_how_it_is_used(value: type | types.FunctionType) -> None:
    assert ">>> " in (value.__doc__ or "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a user stands who has trained: with a run in `runs/clip_emoji`."""
    found = tmp_path_factory.mktemp("examples")
    flags = ["--train.steps", "1", "--train.batch_size", "16", "--evaluate", "[]", "--run_dir", str(found / "runs/clip_emoji")]
    quick = ["--data.cache", "false", "--optim.muon_lr", "null"]
    narrow = ["--image.encoder.args.widths", "[8, 8, 8]", "--text.encoder.args.width", "32"]
    with small_vocabulary():
        mmcl.train(mmcl.load_config("clip_emoji", [*flags, *quick, *narrow]))
        yield found


class LastLines(doctest.OutputChecker):
    """Output of a long computation before its result may be anything."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        lines = len(want.splitlines())
        return super().check_output(want, "".join(got.splitlines(True)[-lines:]) if want else got, optionflags)


WITH_EXAMPLES = [module_name(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]
LONG = {"mmcl.interop.export.exporting", "mmcl.interop.onnx_model"}
"""Those export to ONNX, which takes ten seconds; tests/interop/export does it with a smaller model, and loads the graph."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.long] if one in LONG else []) for one in WITH_EXAMPLES])
def test_every_example_in_a_docstring_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(checker=LastLines(), verbose=False)
    for test in doctest.DocTestFinder().find(module, extraglobs={"np": np, "torch": torch}):
        runner.run(test)
    results = runner.summarize(verbose=False)
    assert results.attempted > 0
    assert results.failed == 0


def imported(path: Path) -> set[str]:
    """Modules of the package that a module imports when it is loaded itself: not in functions, not for types alone."""
    found: set[str] = set()

    def look(body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Import():
                    found.update(alias.name for alias in node.names)
                case ast.ImportFrom(module=str(module), level=0):
                    names = {f"{module}.{alias.name}" for alias in node.names}
                    found.update(names & set(MODULES) or {module})
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    look(node.orelse)
                case ast.If() | ast.Try() | ast.With():
                    look([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])
                case ast.ClassDef():
                    look(node.body)
                case _:
                    pass

    look(tree(path).body)
    return (found & set(MODULES)) - {module_name(path)}


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_name(path): imported(path) for path in FILES}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_circle_would_be_found() -> None:
    graph = {module_name(path): imported(path) for path in FILES}
    assert {"mmcl.errors", "mmcl.types"} <= graph["mmcl.interop.model"]
    graph["mmcl.errors"] = {*graph["mmcl.errors"], "mmcl.interop.model"}
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(graph).static_order())
