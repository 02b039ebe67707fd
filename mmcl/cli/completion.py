"""`mmcl completion`: scripts with which a shell completes verbs, flags and names of components and configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from mmcl.cli.output import show

_BASH = """_mmcl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    case "$previous" in
{values}
        *) case "${{COMP_WORDS[1]}}" in
{verbs}
        esac ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{all}"
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -F _mmcl mmcl"""


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes verbs, flags and names.

    Examples:
        eval "$(mmcl completion bash)"
        mmcl completion fish > ~/.config/fish/completions/mmcl.fish

    Put the first line into ~/.bashrc; with zsh, the same line with the word zsh into ~/.zshrc.

    Args:
        shell: bash, zsh or fish.
    """
    by_verb, by_flag = _words_of_verbs(), _words_of_flags()
    if shell == "fish":
        show(_fish(by_verb, by_flag))
    else:
        lines = ["autoload -Uz bashcompinit && bashcompinit"] if shell == "zsh" else []
        show("\n".join([*lines, _bash(by_verb, by_flag)]))


def _words_of_verbs() -> dict[str, list[str]]:
    """Returns what may follow each verb: its own verbs, names and flags."""
    from mmcl.cli.arguments import form_of
    from mmcl.cli.data import VERBS as DATA_VERBS
    from mmcl.cli.evaluate import FORMS as EVALUATE_FORMS
    from mmcl.cli.list import Kind
    from mmcl.cli.main import VERBS
    from mmcl.config.describe import all_settings
    from mmcl.config.shipped import shipped_configs
    from mmcl.evaluate import EVALUATORS

    settings = [f"--{one.path}" for one in all_settings() if "NAME" not in one.path and ".0." not in one.path]
    configs = list(shipped_configs())
    suites = [name for name in configs if name.startswith("eval/")]
    runs = [name for name in configs if name not in suites]
    names = {
        "train": [*runs, *settings],
        "doctor": [*runs, *settings],
        "config": configs,
        "eval": ["suite", *EVALUATORS, *suites],
        "data": list(DATA_VERBS),
        "list": list(get_args(Kind)),
        "completion": ["bash", "zsh", "fish"],
    }
    forms = {verb: [form] for verb, form in VERBS.items()} | {"eval": EVALUATE_FORMS, "data": list(DATA_VERBS.values())}
    flags = {verb: sorted({f"--{flag}" for form in own for flag in form_of(form).flags}) for verb, own in forms.items()}
    return {verb: [*names.get(verb, []), *flags[verb], "--help", "--help_all"] for verb in VERBS}


def _words_of_flags() -> dict[str, list[str]]:
    """Returns the names that may be the value of a flag."""
    from mmcl.data import SOURCES
    from mmcl.encoders import HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.methods import METHODS

    return {
        "--data": list(SOURCES),
        "--bank": list(SOURCES),
        "--data.train.name": ["auto", *SOURCES],
        "--image.encoder.name": list(IMAGE_ENCODERS),
        "--image.head.name": list(HEADS),
        "--method.name": list(METHODS),
        "--target": ["images", "texts"],
        "--text.encoder.name": list(TEXT_ENCODERS),
        "--text.head.name": list(HEADS),
    }


def _bash(by_verb: Mapping[str, list[str]], by_flag: Mapping[str, list[str]]) -> str:
    def cases(words: Mapping[str, list[str]], indent: int) -> str:
        return "\n".join(f'{"":{indent}}{key}) words="{" ".join(own)}" ;;' for key, own in words.items())

    return _BASH.format(values=cases(by_flag, 8), verbs=cases(by_verb, 12), all=" ".join([*by_verb, "--help", "--version"]))


def _fish(by_verb: Mapping[str, list[str]], by_flag: Mapping[str, list[str]]) -> str:
    lines = [f"complete -c mmcl -n __fish_use_subcommand -a '{' '.join(by_verb)}'"]
    for verb, words in by_verb.items():
        lines.append(f"complete -c mmcl -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(words)}'")
    for flag, words in by_flag.items():
        lines.append(f"complete -c mmcl -n 'string match -q -- {flag} (commandline -opc)[-1]' -a '{' '.join(words)}'")
    return "\n".join(lines)
