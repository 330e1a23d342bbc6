"""What the owner of the box decided: config.toml, checked against schemas/config.schema.json."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.names import nearest
from aima_lib.registry import SCHEMAS, first_error

Config = Mapping[str, Any]


def load(home: Path) -> Config:
    """The home's configuration with every default filled in.

    Raises:
        InvalidArgument: the file is not TOML, holds an unknown key (the nearest known one is named) or a wrong value.
    """
    path = home / "config.toml"
    schema = json.loads((SCHEMAS / "config.schema.json").read_text(encoding="utf-8"))
    given = _read(path) if path.exists() else {}
    _refuse_unknown(path, given, schema)
    if error := first_error(schema, given):
        raise InvalidArgument(f"{path}: {error}", hint="see schemas/config.schema.json, or take the line out to get the default")
    return _filled(given, schema)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from error


def _refuse_unknown(path: Path, given: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> None:
    known = schema["properties"]
    for key, value in given.items():
        if key not in known:
            close = nearest(key, known, 1) or sorted(known)
            raise InvalidArgument(f"{path}: unknown key {prefix}{key}", hint=f"the nearest is {prefix}{close[0]}")
        if isinstance(value, dict) and "properties" in known[key]:
            _refuse_unknown(path, value, known[key], f"{prefix}{key}.")


def _filled(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _filled(given.get(key, {}), spec) if "properties" in spec else given.get(key, spec["default"])
        for key, spec in schema["properties"].items()
    }
