"""Python environments that engines have to themselves, beneath the home: engines/<name>-<version>/, each with a record of what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "aima.json"


@dataclass(frozen=True, slots=True)
class Environment:
    """One that is whole: its record is written last."""

    name: str
    version: str
    folder: Path
    packages: Mapping[str, str]
    installed_at: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


class Environments:
    """All of a home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str, version: str) -> Path:
        """Where the environment of an engine's version lies, or would."""
        return self.folder / f"{name}-{version}"

    def find(self, name: str, version: str | None = None) -> Environment | None:
        """The environment of an engine, the one installed last where no version is named. Blocking, for a moment."""
        found = [each for each in self._all(name) if version in (None, each.version)]
        return max(found, key=lambda each: each.installed_at, default=None)

    def _all(self, name: str) -> list[Environment]:
        read = [_read(record) for record in self.folder.glob(f"{name}-*/{RECORD}")]
        return [each for each in read if each is not None and each.name == name and each.python.exists()]


def _read(record: Path) -> Environment | None:
    try:
        said: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return Environment(said["name"], said["version"], record.parent, said["packages"], said["installed_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
