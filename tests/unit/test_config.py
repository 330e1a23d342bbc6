"""config.toml: every key has a default, and a wrong one is told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aima_lib import config
from aima_lib.errors import InvalidArgument
from aima_lib.registry import SCHEMAS

SCHEMA: dict[str, Any] = json.loads((SCHEMAS / "config.schema.json").read_text(encoding="utf-8"))


def write(home: Path, text: str) -> Path:
    (home / "config.toml").write_text(text, encoding="utf-8")
    return home


def usual(spec: Any) -> Any:
    return {key: usual(each) for key, each in spec["properties"].items()} if "properties" in spec else spec["default"]


def test_without_a_file_every_key_has_its_default(tmp_path: Path) -> None:
    settings = config.load(tmp_path)
    for section, spec in SCHEMA["properties"].items():
        assert dict(settings[section]) == {key: usual(each) for key, each in spec["properties"].items()}


def test_the_defaults_obey_the_schema_they_stand_in(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(config.load(tmp_path))


def test_what_is_given_is_taken_and_the_rest_filled_in(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, "[engines]\ngrace_seconds = 3\n"))
    assert settings["engines"]["grace_seconds"] == 3
    assert settings["engines"]["restart_limit"] == SCHEMA["properties"]["engines"]["properties"]["restart_limit"]["default"]
    assert settings["server"]["host"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "unknown", "near"),
    [
        ("[engines]\ngrace_second = 3\n", "engines.grace_second", "engines.grace_seconds"),
        ("[engine]\ngrace_seconds = 3\n", "engine", "engines"),
        ("[server]\nprot = 1\n", "server.prot", "server.port"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, unknown: str, near: str) -> None:
    with pytest.raises(InvalidArgument, match=f"config.toml: unknown key {unknown}$") as raised:
        config.load(write(tmp_path, text))
    assert raised.value.hint == f"the nearest is {near}"


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nport = 'high'\n",
        "[server]\nport = 70000\n",
        "server = 5\n",
        "[events]\nretention_count = 1\n",
        "[events]\nretention_count = 100000000000000000000\n",
        "[events]\nretention_days = 1000000\n",
        "[engines]\ngrace_seconds = nan\n",
    ],
)
def test_a_wrong_value_is_refused_naming_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.toml: "):
        config.load(write(tmp_path, text))


@pytest.mark.parametrize("content", [b"[server\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_not_toml_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"config\.toml is not TOML"):
        config.load(tmp_path)


def test_a_file_that_cannot_be_read_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(InvalidArgument, match="cannot be read: Is a directory"):
        config.load(tmp_path)
