"""Reading and running the code blocks of a Markdown page: `python snippets.py README.md` runs them in the current folder.

Blocks of a page run in order, in one folder; those in Python share their names. A block whose first line begins with "# Needs"
is not run: it says to the reader, too, what it needs. Its configurations are checked all the same. Training is shortened by
flags after those of the page (`quick_flags`), and what a page makes again is removed first; other commands run as they are.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import yaml

import mmcl
from mmcl.cli.main import main
from mmcl.config import Config, load_config, to_dict
from mmcl.runs.components import check_components
from mmcl.serve import running

LANGUAGES = ("python", "bash", "yaml", "text", "toml")
"""Of these, `text` and `toml` are shown and not run."""

QUICK = ("--train.threads", "1", "--data.cache", "false", "--optim.muon_lr", "null")
SMALL_TEXT = ("--text.encoder.args.width", "32")
"""Options with which a step of any configuration is quick, and a checkpoint of one with the text encoder `small_text` small."""

_FEW = "{name: emoji, args: {split: unseen_concept, fold: test, vendors: [twemoji], flags: false}}"
RETRIEVAL = f"[{{name: retrieval, label: emoji, data: {_FEW}, bank: {_FEW}, args: {{ks: [1, 2], examples: 1}}}}]"
"""An evaluation that takes no time, in place of those of a configuration with images and texts."""

_QUICK_EVALUATORS = ("knn", "classification")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the fence.
        text: the lines within.
        line: number of the fence, from 1.
    """

    language: str
    text: str
    line: int

    @property
    def needs_more(self) -> bool:
        return self.text.startswith("# Needs ")


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of code, without the directives of Sphinx (`{toctree}`)."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [Block(match[1], match[2], text[: match.start()].count("\n") + 1) for match in found]
    return [block for block in blocks if not block.language.startswith("{")]


def run_page(page: Path) -> None:
    """Runs all blocks of a page in the current folder. Raises whatever a block raises, with its place added."""
    module = sys.modules["page"] = ModuleType("page")  # what is defined in it can be pickled
    try:
        for block in blocks_of(page):
            try:
                _run(block, page, vars(module))
            except BaseException as error:
                error.add_note(f"{page}, the block in line {block.line}")
                raise
    finally:
        del sys.modules["page"]


def _run(block: Block, page: Path, names: dict[str, Any]) -> None:
    if block.language == "python" and not block.needs_more:
        with mock.patch.object(mmcl, "load_config", quick_config):
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
    elif block.language == "yaml":
        file = Path("page.yaml")
        file.write_text(block.text, encoding="utf-8")
        check_components(load_config(file))
    elif block.language == "bash":
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.needs_more:
                _check_training(line)
            elif line.strip():
                _run_command(line)


def _check_training(line: str) -> None:
    """Checks the configuration of a command that trains, where it names a shipped one."""
    _, found, rest = line.partition("mmcl train ")
    words = shlex.split(rest.partition("&&")[0])
    if found and words and not words[0].endswith(".yaml") and "$" not in rest:
        name, flags = ("clip_emoji", words) if words[0].startswith("--") else (words[0], words[1:])
        check_components(load_config(name, flags))


def _run_command(line: str) -> None:
    """Runs `mmcl ...`; its output goes to the file behind ">", if there is one."""
    words = shlex.split(line, comments=True)
    file = None
    if ">" in words:
        *words, _, file = words
    assert words[0] == "mmcl", f"only mmcl is run: {line}"
    printed = io.StringIO()
    if words[1] == "example":
        shutil.rmtree(words[2], ignore_errors=True)
    with contextlib.redirect_stdout(printed), servers_that_end():
        code = main(shortened(words[1:]))
    print(f"$ {line}\n{printed.getvalue()}")
    assert code == 0, f"{line}: exit code {code}\n{printed.getvalue()}"
    if file is not None:
        Path(file).write_text(printed.getvalue(), encoding="utf-8")


@contextlib.contextmanager
def servers_that_end() -> Iterator[None]:
    """`mmcl serve` begins to listen, at any port, and ends; tests/serve tests that it answers."""
    anywhere = mock.patch.object(running, "listen", lambda host, port, listen=running.listen: listen(host, 0))
    with anywhere, mock.patch.object(running, "run_server"):
        yield


def shortened(words: list[str]) -> list[str]:
    """Training for two steps of two samples, with evaluators that take no time; in place of a run that is there already."""
    if words[0] == "finetune":
        named = dict(itertools.pairwise(words))
        shutil.rmtree(named.get("--run_dir", f"runs/finetune_{named.get('--preset', 'full')}"), ignore_errors=True)
        return [*words, *QUICK, "--train.steps", "2", "--train.batch_size", "2"]
    if words[0] != "train":
        return words
    own = words[1:]
    name = "clip_emoji" if not own or own[0].startswith("--") else own.pop(0)
    config = load_config(name, [word for word in own if word != "--resume"])
    if "--resume" not in own and config.run_dir is not None:
        shutil.rmtree(config.run_dir, ignore_errors=True)
    return ["train", name, *own, *quick_flags(config), "--train.steps", "2", "--train.batch_size", "2"]


def quick_config(config: str | Path, flags: Sequence[str] = ()) -> Config:
    """In place of `mmcl.load_config`: what it returns, with `quick_flags` and steps of 16 samples."""
    return load_config(config, [*flags, *quick_flags(load_config(config, flags)), "--train.batch_size", "16"])


def quick_flags(config: Config) -> tuple[str, ...]:
    """Flags after which a step of a configuration is quick, its checkpoints are small and its evaluators take no time."""
    quick = [one for one in to_dict(config)["evaluate"] if one["name"] in _QUICK_EVALUATORS]
    has_both = config.image is not None and config.text is not None
    evaluate = RETRIEVAL if config.evaluate and has_both else yaml.safe_dump(quick, default_flow_style=True, width=10_000)
    small = SMALL_TEXT if config.text and config.text.encoder and config.text.encoder.name == "small_text" else ()
    return (*QUICK, *small, "--evaluate", evaluate)


if __name__ == "__main__":
    print(mmcl.__file__)
    run_page(Path(sys.argv[1]))
