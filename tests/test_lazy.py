"""Public names that are imported on first use."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

PACKAGES = ["mmcl", "mmcl.evaluate", "mmcl.losses"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package with a module `far.slow`, which defines `value`, and a submodule `near`."""
    name = f"lazy_{tmp_path.name}"
    lines = "from mmcl.lazy import lazy_names\nHOMES = {'value': 'far.slow', 'near': 'near', 'absent': 'far.slow'}\n"
    files = {
        "__init__.py": f"{lines}__getattr__, __dir__ = lazy_names(__name__, HOMES)\n",
        "far/__init__.py": "",
        "far/slow.py": "value = [1]\n",
        "near.py": "",
    }
    for file, text in files.items():
        path = tmp_path / name / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_name_is_imported_on_first_use(package: str) -> None:
    found = importlib.import_module(package)
    assert f"{package}.far" not in sys.modules
    assert {"HOMES", "value", "near"} <= set(dir(found))
    assert f"{package}.far" not in sys.modules
    assert found.value is sys.modules[f"{package}.far.slow"].value
    assert vars(found)["value"] == [1]
    assert found.near is sys.modules[f"{package}.near"]


def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    found = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'valu'"):
        _ = found.valu
    with pytest.raises(AttributeError, match=f"module '{package}.far.slow' has no attribute 'absent'"):
        _ = found.absent
    assert not hasattr(found, "__wrapped__")


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_same_names(name: str) -> None:
    """The names are listed twice, since a type checker does not run `lazy_names`."""
    module = importlib.import_module(name)
    assert module.__file__
    block = next(
        node
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `import x as x` exports a name"
            seen[alias.name] = f"{name}.{alias.name}" if node.module == name else str(node.module)
    assert seen == {public: f"{name}.{home}" for public, home in module._HOMES.items()}
    assert set(seen) <= set(module.__all__)
