"""`aima mcp install`: each client's file, in that client's words, with all that was there before still there, byte for byte."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aima_lib.errors import AimaError
from aima_mcp import clients
from aima_mcp.commands.mcp import install
from aima_mcp.faces.cli import build

PLACES = {
    "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "claude-code": ".claude.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".config/Code/User/mcp.json",
    "codex": ".codex/config.toml",
}
JSON = [name for name in PLACES if name != "codex"]
SECRET = "sk-somebody-elses"
CODEX = """# mine, and it stays
model = "o9"  # so does this

[mcp_servers.docs]
command = "npx"
env = { TOKEN = "sk-somebody-elses" }

# about the last one
[tools]
web_search = true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "AIMA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "bin" / "aima"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return tmp_path


def aima(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(build(), ["mcp", *words], input=answer)


def table(client: str, path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return tomllib.loads(text)["mcp_servers"] if client == "codex" else json.loads(text)[clients.CLIENTS[client].key]


def test_the_command_names_the_clients_that_there_are() -> None:
    assert list(install.params[0].type.choices) == list(clients.CLIENTS) == list(PLACES)  # type: ignore[attr-defined]


@pytest.mark.parametrize("client", PLACES)
def test_a_client_without_a_file_gets_one(folder: Path, client: str) -> None:
    done = aima("--profile", "operator", "install", client, "--yes")
    path = folder / PLACES[client]
    assert done.exit_code == 0 and str(path) in done.output, done.output
    entry = table(client, path)["aima"]
    assert entry["args"][-3:] == ["mcp", "--profile", "operator"] and Path(entry["command"]).is_absolute()
    assert entry.get("type") == ("stdio" if client in ("claude-code", "vscode") else None)
    assert not [name for name in os.listdir(path.parent) if name.startswith(f".{path.name}.")], "nothing half-written is left"
    before = path.read_bytes()
    again = aima("--profile", "operator", "install", client, "--yes")
    assert "already" in again.output and path.read_bytes() == before and not path.with_name(path.name + ".bak").exists()


@pytest.mark.parametrize("client", JSON)
@pytest.mark.parametrize(
    "given",
    [
        "{}",
        '{"a": 1.50, "b": "\\u00e9"}',
        '\ufeff{\r\n\t"a": 1e3,\r\n\t"KEY": {}\r\n}\r\n',
        '{\n    "KEY": {\n        "docs": {"command": "npx", "env": {"TOKEN": "sk-somebody-elses"}}\n    },\n    "z": [1,  2]\n}',
        '{"KEY":{"docs":{"command":"}"},"{":{"x":"\\"aima\\": {"}}}',
    ],
    ids=["empty", "another", "tabs-crlf-bom", "indented", "minified"],
)
def test_what_was_there_stays_byte_for_byte(folder: Path, client: str, given: str) -> None:
    path = folder / PLACES[client]
    path.parent.mkdir(parents=True, exist_ok=True)
    before = given.replace("KEY", clients.CLIENTS[client].key).encode()
    path.write_bytes(before)
    path.chmod(0o640)
    done = aima("install", client, answer="y\n")
    after = path.read_bytes()
    assert done.exit_code == 0, done.output
    more = len(after) - len(before)
    assert any(after[:place] + after[place + more :] == before for place in range(len(before) + 1)), "something was put in, and that is all"
    old, new = (json.loads(text.decode("utf-8-sig")) for text in (before, after))
    assert new[clients.CLIENTS[client].key].pop("aima")["args"] == ["mcp"]
    old.setdefault(clients.CLIENTS[client].key, {})
    assert new == old
    assert path.with_name(path.name + ".bak").read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert SECRET not in done.output, "what is shown is our part of the file and nobody else's"


def test_toml_keeps_its_comments_and_its_order(folder: Path) -> None:
    path = folder / PLACES["codex"]
    path.parent.mkdir()
    path.write_text(CODEX, encoding="utf-8")
    assert aima("install", "codex", "--yes").exit_code == 0
    after = path.read_text(encoding="utf-8")
    assert after.startswith(CODEX) and tomllib.loads(after)["mcp_servers"]["aima"]["args"] == ["mcp"]
    path.write_text(after + "\n# and more\n[more]\nx = 1\n", encoding="utf-8")
    changed = CliRunner().invoke(build(), ["--home", str(folder / "h"), "mcp", "install", "codex", "--yes", "--profile", "full"])
    assert changed.exit_code == 0, changed.output
    text = path.read_text(encoding="utf-8")
    assert text.startswith(CODEX) and text.endswith("\n# and more\n[more]\nx = 1\n")
    entry = tomllib.loads(text)["mcp_servers"]["aima"]
    assert entry["args"] == ["mcp", "--profile", "full"] and entry["env"] == {"AIMA_HOME": str(folder / "h")}
    assert tomllib.loads(text)["mcp_servers"]["docs"]["env"] == {"TOKEN": SECRET} and SECRET not in changed.output


@pytest.mark.parametrize("client", JSON)
def test_what_its_owner_added_to_our_entry_stays(folder: Path, client: str) -> None:
    path, key = folder / PLACES[client], clients.CLIENTS[client].key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: {"aima": {"command": "old", "timeout": 9, "env": {"AIMA_URL": "u"}}}}), encoding="utf-8")
    done = aima("install", client, "--yes")
    assert done.exit_code == 0 and '- {"command": "old"' in done.output
    entry = table(client, path)["aima"]
    assert entry["timeout"] == 9 and entry["env"] == {"AIMA_URL": "u"} and entry["command"] != "old"


@pytest.mark.parametrize(
    ("client", "text", "why"),
    [
        ("vscode", '{\n  // my servers\n  "servers": {}\n}\n', "not JSON"),
        ("vscode", '{"servers": {},}', "not JSON"),
        ("cursor", '{"mcpServers": []}', "mcpServers"),
        ("cursor", '[1]', "mcpServers"),
        ("claude-desktop", '{"mcpServers": {}, "mcpServers": {"a": {}}}', "twice"),
        ("claude-code", "\xff", "not JSON"),
        ("codex", "model = \n", "Invalid"),
        ("codex", 'mcp_servers = { docs = { command = "npx" } }\n', ""),
        ("codex", '[mcp_servers.aima]\ncommand = "old"\n[mcp_servers.aima.tools.x]\napproval_mode = "prompt"\n', ""),
        ("codex", '[mcp_servers.aima]\ncommand = "old"\n[other]\nx = 1\n[mcp_servers.aima.env]\nA = "b"\n', ""),
    ],
)  # fmt: skip
def test_what_it_cannot_change_safely_is_left_alone_and_it_says_what_to_paste(folder: Path, client: str, text: str, why: str) -> None:
    path = folder / PLACES[client]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AimaError) as refused:
        clients.planned(clients.CLIENTS[client], {"command": "/bin/aima", "args": ["mcp"]})
    assert refused.value.code == "failed_precondition" and why in str(refused.value)
    assert "/bin/aima" in str(refused.value.hint), "ready to paste"
    assert path.read_text(encoding="utf-8") == text and os.listdir(path.parent).count(path.name + ".bak") == 0


def test_it_asks_first_and_writes_nothing_without_a_yes(folder: Path) -> None:
    path = folder / PLACES["cursor"]
    refused = aima("install", "cursor", answer="n\n")
    silent = aima("install", "cursor", answer="")
    printed = aima("--profile", "full", "install", "cursor", "--print")
    assert refused.exit_code == 0 and "Nothing was written" in refused.output and '+     "aima"' in refused.output
    assert isinstance(silent.exception, AimaError) and "--yes" in str(silent.exception.hint)
    assert json.loads(printed.output)["mcpServers"]["aima"]["args"] == ["mcp", "--profile", "full"]
    assert not path.parent.exists()
    unknown = aima("install", "cursor", "--profile", "operate", "--yes")
    assert isinstance(unknown.exception, AimaError) and "operator" in str(unknown.exception.hint) and not path.exists()


def test_a_file_that_changed_meanwhile_is_not_overwritten(folder: Path) -> None:
    change = clients.planned(clients.CLIENTS["cursor"], {"command": "x", "args": []})
    change.path.parent.mkdir()
    change.path.write_text("{}", encoding="utf-8")
    with pytest.raises(AimaError, match="changed meanwhile"):
        clients.write(change)
    assert change.path.read_text(encoding="utf-8") == "{}"


def test_a_link_stays_a_link(folder: Path) -> None:
    kept = folder / "dotfiles" / "mcp.json"
    kept.parent.mkdir()
    kept.write_text("{}", encoding="utf-8")
    link = folder / PLACES["cursor"]
    link.parent.mkdir()
    link.symlink_to(kept)
    assert aima("install", "cursor", "--yes").exit_code == 0
    assert link.is_symlink() and "aima" in json.loads(kept.read_text(encoding="utf-8"))["mcpServers"]


@pytest.mark.parametrize(
    ("system", "variables", "places"),
    [
        ("darwin", {}, {"claude-desktop": "Library/Application Support/Claude/claude_desktop_config.json", "vscode": "Library/Application Support/Code/User/mcp.json"}),
        ("win32", {"APPDATA": "Roaming"}, {"claude-desktop": "Roaming/Claude/claude_desktop_config.json", "vscode": "Roaming/Code/User/mcp.json"}),
        ("linux", {"XDG_CONFIG_HOME": "x", "CODEX_HOME": "c", "CLAUDE_CONFIG_DIR": "d"}, {"vscode": "x/Code/User/mcp.json", "codex": "c/config.toml", "claude-code": "d/.claude.json"}),
    ],
    ids=["macos", "windows", "moved"],
)  # fmt: skip
def test_each_system_has_its_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch, system: str, variables: dict[str, str], places: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(folder / value))
    assert {client: clients.CLIENTS[client].path() for client in places} == {client: folder / place for client, place in places.items()}
