"""Whether a released model can be had, before its library is imported, which takes longer than the answer."""

from __future__ import annotations

from pathlib import Path

from mmcl.files.hub import is_cached, is_reachable, not_found
from mmcl.interop.catalog import catalog


def check_available(name: str) -> None:
    """Raises UserError if a model, by its name for `load_model`, would have to be downloaded, and the hub cannot be reached."""
    repositories = _repositories(name)
    if repositories and not any(map(is_cached, repositories)) and not is_reachable():
        raise not_found(name)


def _repositories(name: str) -> list[str]:
    """The repositories of the hub that may have the weights; none if there is none, or if it is not known."""
    scheme, _, rest = name.partition(":")
    if scheme == "hf":
        return [] if Path(rest).is_dir() else [rest]
    if scheme in ("open_clip", "timm") and rest.startswith("hf-hub:"):
        return [rest.removeprefix("hf-hub:")]
    released = {one: facts.get("hub") for models in catalog().values() for one, facts in models.items()}
    # timm:ARCH stands for one of the weights timm:ARCH.TAG.
    return [hub for one, hub in released.items() if hub and f"{one}.".startswith(f"{name}.")]
