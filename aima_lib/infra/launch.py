"""What stands between an engine's adapter and a launcher: how one engine is started, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FOLDER, PORT = "{folder}", "{port}"


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start an engine and know that it is up.

    In `argv`, `{folder}` is the instance's private folder and `{port}` the port the launcher chose. `files` are written into that
    folder, readable by the owner alone, before the start. With `announces` the engine chooses its port and says so in ready.json.
    """

    argv: tuple[str, ...]
    alias: str
    tasks: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    announces: bool = False
