"""What the shells complete, with the key pressed in each of them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmcl.cli.main import main

START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
SECONDS = 20

COMPLETIONS = {
    "mmcl sea": "mmcl search",
    "mmcl --vers": "mmcl --version",
    "mmcl train clip_emoji_c": "mmcl train clip_emoji_concepts",
    "mmcl train min": "mmcl train mine.yaml",
    "mmcl train --optim.bi": "mmcl train --optim.bias_lr",
    "mmcl train --method.name simcl": "mmcl train --method.name simclr",
    "mmcl train --run_dir ru": "mmcl train --run_dir runs",
    "mmcl doctor clip_emoji --proc": "mmcl doctor clip_emoji --processes",
    "mmcl search runs/al": "mmcl search runs/alpha",
    "mmcl search runs/alpha 'a cat' --pict": "mmcl search runs/alpha 'a cat' --picture",
    "mmcl search runs/alpha cat --target te": "mmcl search runs/alpha cat --target texts",
    "mmcl classify photos/ca": "mmcl classify photos/cat.png",
    "mmcl classify photos/cat.png --model runs/al": "mmcl classify photos/cat.png --model runs/alpha",
    "mmcl eval kn": "mmcl eval knn",
    "mmcl eval runs/be": "mmcl eval runs/beta",
    "mmcl eval mteb runs/be": "mmcl eval mteb runs/beta",
    "mmcl eval suite eval/em": "mmcl eval suite eval/emoji",
    "mmcl eval knn --bank_e": "mmcl eval knn --bank_embeddings",
    "mmcl eval knn --data dig": "mmcl eval knn --data digits",
    "mmcl watch ru": "mmcl watch runs",
    "mmcl compare runs/alpha runs/be": "mmcl compare runs/alpha runs/beta",
    "mmcl data ver": "mmcl data verify",
    "mmcl data verify pho": "mmcl data verify photos",
    "mmcl config eval/": "mmcl config eval/emoji",
    "mmcl list enc": "mmcl list encoders",
    "mmcl example new --kind cl": "mmcl example new --kind classes",
    "mmcl completion fi": "mmcl completion fish",
}
"""What is typed before the key, and what stands there after it, without the slash after a folder."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    for folder in ("runs/alpha", "runs/beta", "photos"):
        (place / folder).mkdir(parents=True)
    for file in ("photos/cat.png", "photos/dog.png", "mine.yaml"):
        (place / file).touch()
    return place


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    file = folder / f"completion.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


def pressed(shell: str, file: Path, place: Path, lines: Sequence[str]) -> list[str]:
    """Types each line and the key into a shell on a terminal, and has it print what then stands there."""
    typed = [f" source {file}", *(f"{line}\t\x01echo 'GOT \x05'" for line in lines)]  # to the start of the line, and to its end
    typed = [line.replace("'a cat'", '"a cat"') for line in typed]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(place)
        os.execvpe(
            shell, START[shell], {**os.environ, "HOME": str(file.parent), "TERM": "dumb", "PS1": "$ ", "INPUTRC": "/dev/null"}
        )
    found: list[str] = []
    shown, end = "", time.monotonic() + SECONDS
    try:
        for line in typed:
            os.write(terminal, f"{line}\n".encode())
        while len(found) < len(lines) and time.monotonic() < end:
            if select.select([terminal], [], [], 0.5)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
            found = re.findall(r"(?m)^GOT (.*?) *\r?$", shown)
    finally:
        os.close(terminal)
        os.waitpid(process, 0)
    return [one.rstrip("/").replace('"', "'") for one in found]


@pytest.mark.parametrize("shell", START)
def test_the_key_completes(shell: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    found = pressed(shell, script(shell, tmp_path, capsys), place, list(COMPLETIONS))
    assert dict(zip(COMPLETIONS, found, strict=True)) == COMPLETIONS


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fish says what the key would offer."""
    file = script("fish", tmp_path, capsys)
    asked = "\n".join(f'complete -C "{line}"; echo' for line in COMPLETIONS)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {file}\n{asked}"],
        cwd=place,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    offered = [block.split("\n") for block in done.stdout.split("\n\n")]
    for (line, expected), words in zip(COMPLETIONS.items(), offered[:-1], strict=True):
        assert [word.partition("\t")[0].rstrip("/") for word in words] == [expected.split()[-1]], line


def test_an_empty_word_is_a_verb_or_a_name_and_no_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = script("bash", tmp_path, capsys)
    some: dict[str, set[str]] = {"mmcl": {"train", "--help"}, "mmcl data": {"verify", "stats"}, "mmcl watch": set()}
    for words, expected in some.items():
        given = words.split()
        keys = f"COMP_WORDS=({words} ''); COMP_CWORD={len(given)}; _mmcl; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "--norc", "-c", f"source {file}\n{keys}"], capture_output=True, text=True, check=True)
        offered = {*done.stdout.split()}
        assert expected <= offered
        assert offered or not expected
        assert not any(word.startswith("--") for word in offered) or words == "mmcl"
