"""`mmcl completion`: scripts with which a shell completes verbs, flags and names of components and configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from mmcl.cli.arguments import form_of
from mmcl.cli.output import show

Words = Mapping[str, Sequence[str]]
"""By verb or by flag."""

_BASH = """_mmcl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words="" flags=""
    case "${{COMP_WORDS[1]}}" in
        {verbs}
    esac
    case "$previous" in
        {values}
        --*) words="" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{all}"
    case "$current" in -*) [ "$COMP_CWORD" -eq 1 ] || words="$flags" ;; esac
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -F _mmcl mmcl"""
"""Where no word fits, the shell completes names of files, and so those of runs."""


_ZSH = (
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }",
    "autoload -Uz bashcompinit && bashcompinit",
)
"""With these lines zsh reads the script of bash; the first does nothing where ~/.zshrc has started the completions already."""


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes verbs, flags and names.

    Examples:
        eval "$(mmcl completion bash)"
        mmcl completion fish > ~/.config/fish/completions/mmcl.fish

    Put the first line into ~/.bashrc; with zsh, the same line with the word zsh into ~/.zshrc.

    Args:
        shell: bash, zsh or fish.
    """
    words = _names_of_verbs(), _flags_of_verbs(), _values_of_flags()
    if shell == "fish":
        show(_fish(*words))
    else:
        show("\n".join([*(_ZSH if shell == "zsh" else ()), _bash(*words)]))


def _flags_of_verbs() -> dict[str, list[str]]:
    """Returns the flags of each verb, those of all its forms."""
    from mmcl.config.describe import all_settings

    settings = [f"--{one.path}" for one in all_settings() if "NAME" not in one.path and ".0." not in one.path]
    flags = {verb: sorted({f"--{flag}" for form in own for flag in form_of(form).flags}) for verb, own in _forms().items()}
    takes_settings = ("train", "doctor")
    return {verb: [*own, *(settings if verb in takes_settings else []), "--help", "--help_all"] for verb, own in flags.items()}


def _forms() -> dict[str, list[Callable[..., object]]]:
    """Returns the functions of each verb."""
    from mmcl.cli.data import VERBS as DATA_VERBS
    from mmcl.cli.evaluate import FORMS as EVALUATE_FORMS
    from mmcl.cli.index import VERBS as INDEX_VERBS
    from mmcl.cli.main import VERBS

    return (
        {verb: [form] for verb, form in VERBS.items()}
        | {"eval": [*EVALUATE_FORMS], "data": [*DATA_VERBS.values()]}
        | {"index": [*INDEX_VERBS.values()]}
    )


def _names_of_verbs() -> dict[str, list[str]]:
    """Returns the words that may follow a verb: its own verbs, and names of configurations and evaluators."""
    from mmcl.cli.data import VERBS as DATA_VERBS
    from mmcl.cli.index import VERBS as INDEX_VERBS
    from mmcl.cli.list import Kind
    from mmcl.config.shipped import shipped_configs
    from mmcl.evaluate import EVALUATORS

    configs = list(shipped_configs())
    suites = [name for name in configs if name.startswith("eval/")]
    runs = [name for name in configs if name not in suites]
    return {
        "train": runs,
        "doctor": runs,
        "config": configs,
        "eval": ["suite", "mteb", *EVALUATORS, *suites],
        "data": list(DATA_VERBS),
        "index": list(INDEX_VERBS),
        "list": list(get_args(Kind)),
        "completion": ["bash", "zsh", "fish"],
    }


def _values_of_flags() -> dict[str, list[str]]:
    """Returns the names that may be the value of a flag."""
    from mmcl.data import SOURCES
    from mmcl.encoders import ADAPTERS, HEADS, IMAGE_ENCODERS, TEXT_ENCODERS
    from mmcl.methods import METHODS

    flags = [flag for own in _forms().values() for form in own for flag in form_of(form).flags.values()]
    return {f"--{flag.name}": list(flag.choices) for flag in flags if flag.choices} | {
        "--data": list(SOURCES),
        "--bank": list(SOURCES),
        "--data.train.name": ["auto", *SOURCES],
        "--image.adapt.name": list(ADAPTERS),
        "--image.encoder.name": list(IMAGE_ENCODERS),
        "--image.head.name": list(HEADS),
        "--method.name": list(METHODS),
        "--text.adapt.name": list(ADAPTERS),
        "--text.encoder.name": list(TEXT_ENCODERS),
        "--text.head.name": list(HEADS),
    }


def _bash(names: Words, flags: Words, values: Words) -> str:
    verbs = [f'{verb}) words="{" ".join(names.get(verb, []))}"; flags="{" ".join(own)}" ;;' for verb, own in flags.items()]
    of_flags = [f'{flag}) words="{" ".join(own)}" ;;' for flag, own in values.items()]
    indent = f"\n{'':8}"
    return _BASH.format(verbs=indent.join(verbs), values=indent.join(of_flags), all=" ".join([*flags, "--help", "--version"]))


def _fish(names: Words, flags: Words, values: Words) -> str:
    def line(condition: str, words: Sequence[str]) -> str:
        return f"complete -c mmcl -n '{condition}' -a '{' '.join(words)}'"

    previous = "string match -q -- {} (commandline -opc)[-1]"
    after_flag = previous.format('"--*"')
    lines = [line("__fish_use_subcommand", [*flags, "--help", "--version"])]
    lines += [line(f"__fish_seen_subcommand_from {verb}; and not {after_flag}", own) for verb, own in names.items()]
    lines += [line(f"__fish_seen_subcommand_from {verb}", own) for verb, own in flags.items()]
    lines += [line(previous.format(flag), own) for flag, own in values.items()]
    return "\n".join(lines)
