"""Every code block in the documentation and the README runs unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmcl.cli.list import _registries
from mmcl.losses import LOSSES
from tests.documentation.snippets import LANGUAGES, Block, blocks_of, run_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if any(block.language in LANGUAGES[:3] for block in blocks_of(page))]
# `.ci/run` runs the README with the wheel; the others train or export for a minute.
LONG = {
    f"{name}.md"
    for name in (
        *("README", "distillation", "evaluation", "export", "fine_tuning", "first_run", "frozen_encoders", "momentum_clip"),
        *("resume", "slip", "supervised"),
    )
}


@pytest.fixture
def _registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page registers components of its own."""
    for registry in [*_registries().values(), LOSSES]:
        monkeypatch.setattr(registry, "_table", dict(registry._table))
        monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(LOSSES, "_lines", dict(LOSSES._lines))


@pytest.mark.usefixtures("_registries_as_they_were", "place")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] if page.name in LONG else []) for page in WITH_CODE],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_page(page: Path) -> None:
    run_page(page)


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_page(page)
    assert caught.value.__notes__ == [f"{page}, the block in line 3"]


def test_a_command_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\nmmcl data stats nowhere/\n```\n")
    with pytest.raises(AssertionError, match="exit code 2"):
        run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_its_language_and_few_are_not_run(page: Path) -> None:
    blocks = blocks_of(page)
    assert all(block.language in LANGUAGES for block in blocks)
    assert all(_says_what_it_needs(block) for block in blocks)


def _says_what_it_needs(block: Block) -> bool:
    """A block that is not run names what it needs, in a sentence."""
    needs = r"# Needs [^\n]*(network|MNIST|GPU|nodes|clone|module|minutes)[^\n]*\.\n"
    return not block.needs_more or re.match(needs, block.text) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:mmcl|configs|scripts|examples|tests)/[\w/.]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.-]+\.(?:md|png|py|yaml))\)", text):
        assert (page.parent / path).exists(), path
