"""The reference of every setting, from the dataclasses of the schema, their docstrings and the facts at their fields."""

from __future__ import annotations

from mmcl.config import Config
from mmcl.config.describe import Setting, default_of, sections, settings_in
from mmcl.config.setting import decides, facts_of

_TITLES = {
    "Config": "The run as a whole",
    "ComponentConfig": "Components by name",
    "TowerConfig": "`image` and `text`",
    "SourceConfig": "Datasets",
    "EvaluatorConfig": "`evaluate`",
}


def settings_reference() -> str:
    """Markdown: a section for each dataclass of the schema, in the order in which `Config` names them."""
    places: dict[type, list[str]] = {}
    for path, schema in sections():
        places.setdefault(schema, []).append(path)
    return "\n".join(_section(schema, paths) for schema, paths in places.items())


def _section(schema: type, paths: list[str]) -> str:
    title = _TITLES.get(schema.__name__) or f"`{paths[0]}`"
    purpose = (schema.__doc__ or "").partition("\n\n")[0]  # what follows is for Python
    lines = [f"## {title}", "", purpose, ""]
    if len(paths) > 1:
        names = ", ".join(f"`{path}`" for path in dict.fromkeys(paths))
        lines += [f"Set at {names}.", ""]
    for setting in settings_in(schema, paths[0]):
        lines += _setting(setting)
    return "\n".join(lines)


def _setting(setting: Setting) -> list[str]:
    lines = [f"```{{confval}} {setting.path}", f":type: {setting.kind}"]
    default = default_of(setting.field)
    lines += [f":default: {default if default.startswith('none') else f'`{default}`'}"] if default else []
    lines += ["", setting.text, ""]
    used_by = facts_of(setting.field).used_by
    if used_by:
        names = " and ".join(f"`{name}`" for name in used_by)
        lines += [f"Used where `name` is {names}; refused elsewhere.", ""]
    if setting.is_leaf:
        learns = "Decides what is learned" if decides(Config, setting.path) else "Does not decide what is learned"
        lines += [f"*{learns}.*", ""]
    return [*lines, "```", ""]
