"""`mmcl completion`: what the shells offer."""

from __future__ import annotations

import subprocess

import pytest

from mmcl.cli.main import main


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ("mmcl se", "se", {"search"}),
        ("mmcl train clip_em", "clip_em", {"clip_emoji", "clip_emoji_concepts"}),
        ("mmcl train --optim.l", "--optim.l", {"--optim.lr"}),
        ("mmcl train --method.name simc", "simc", {"simclr", "simcse"}),
        ("mmcl search runs/a --im", "--im", {"--image", "--images"}),
        ("mmcl eval kn", "kn", {"knn"}),
        ("mmcl eval knn --ba", "--ba", {"--bank", "--bank_args", "--bank_embeddings"}),
        ("mmcl data ver", "ver", {"verify"}),
    ],
)
def test_completion_in_bash(words: str, word: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    given = words.split()
    pressed = f"COMP_WORDS=({words}); COMP_CWORD={len(given) - 1}; _mmcl; echo ${{COMPREPLY[@]}}"
    script = f"{capsys.readouterr().out}\n{pressed}"
    assert given[-1] == word
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == expected


def test_completion_in_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -Uz bashcompinit")
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("complete -c mmcl -n ") for line in lines)
    assert any("from search" in line and "--top_k" in line for line in lines)
