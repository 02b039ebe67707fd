"""Trainings of the benches: each in a process of its own, and none a second time."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def once(file: Path, settings: str, compute: Callable[..., Any], *args: Any) -> Any:
    """What `compute` gives, or gave to an earlier call with the same settings."""
    if file.exists():
        found = json.loads(file.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{file} was made with other settings; remove it, or give another --runs")
        return found["value"]
    value = compute(*args)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings, "value": value}) + "\n")
    return value


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fork of this process, so that its peak memory is its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(function(*args)))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit("a training failed, see above") from None
    finally:
        child.join()
