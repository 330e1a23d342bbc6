"""The MCP clients that `aima mcp install` knows: where each keeps its servers, in which words, and how ours gets in among the others.

A file is changed at one place, as text, so that everything else in it stays as it is, byte for byte. What the change has made is read
again and must differ in nothing but our entry; a file that cannot be read that strictly (JSON with comments, say) is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_mcp.faces import strict_json

NAME = "aima"
Entry = Mapping[str, Any]
_SPACE = re.compile(r"[ \t\r\n]*")
_INDENT = re.compile(r'\n([ \t]+)"')
_OURS = re.compile(rf"""[ \t]*\[[ \t]*mcp_servers[ \t]*\.[ \t]*(?:{NAME}|"{NAME}"|'{NAME}')[ \t]*[\].]""")
_HEADER = re.compile(r"[ \t]*\[")


@dataclass(frozen=True, slots=True)
class Client:
    """One program that can use AIMA.

    key: what holds its servers. typed: an entry says that it is reached over stdio. again: what makes it read the file.
    """

    title: str
    path: Callable[[], Path]
    key: str = "mcpServers"
    typed: bool = False
    toml: bool = False
    again: str = "Restart it"


@dataclass(frozen=True, slots=True)
class Change:
    """What a client's file would be, and what of it is taken out and put in."""

    path: Path
    before: bytes | None
    after: bytes
    removed: str
    added: str

    @property
    def needed(self) -> bool:
        return self.before != self.after


def _settings(folder: str) -> Path:
    """Where programs keep their settings on this system."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / folder
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / folder
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / folder


def _moved(variable: str, default: str) -> Path:
    """A folder that a variable may move."""
    return Path(os.environ.get(variable) or Path.home() / default)


CLIENTS = {
    "claude-desktop": Client("Claude Desktop", lambda: _settings("Claude") / "claude_desktop_config.json"),
    "claude-code": Client("Claude Code", lambda: _moved("CLAUDE_CONFIG_DIR", "") / ".claude.json", typed=True, again="Start a new session"),
    "cursor": Client("Cursor", lambda: Path.home() / ".cursor" / "mcp.json"),
    "vscode": Client(
        "VS Code", lambda: _settings("Code") / "User" / "mcp.json", key="servers", typed=True, again="Run `MCP: List Servers` and start it"
    ),
    "codex": Client(
        "Codex", lambda: _moved("CODEX_HOME", ".codex") / "config.toml", key="mcp_servers", toml=True, again="Start a new session"
    ),
}


def text_for(client: Client, server: Entry) -> str:
    """What to paste into an empty file of this client."""
    if client.toml:
        return _toml(server)
    return json.dumps({client.key: {NAME: _entry(client, server)}}, indent=2, ensure_ascii=False) + "\n"


def planned(client: Client, server: Entry) -> Change:
    """What installing would do. Changes nothing.

    Raises:
        FailedPrecondition: the file cannot be read, or not be changed without touching what is not ours; what to paste is in the hint.
    """
    path = client.path().resolve()  # what a link leads to is written, not the link
    try:
        before = path.read_bytes() if path.exists() else None
        text = "" if before is None else before.decode("utf-8")
        body = text.removeprefix("\ufeff")
        entry = _merged(_found(client, body), _entry(client, server))
        edit = _in_toml if client.toml else _in_json
        start, end, added = edit(client, body, entry) if body.strip() else (0, len(body), text_for(client, server))
        made = body[:start] + added + body[end:]
        if _without(client, made) != _without(client, body) or _found(client, made) != entry:
            raise ValueError("our entry cannot be put in without changing others")
    except (OSError, ValueError, InvalidArgument) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).replace("the body", "it", 1)
        hint = f"{client.title}'s file is left as it is; put this into it by hand:\n{text_for(client, server)}"
        raise FailedPrecondition(f"{path} cannot be changed safely: {why}", hint=hint) from None
    mark = text[: len(text) - len(body)]
    return Change(path, before, (mark + made).encode(), body[start:end], added)


def write(change: Change) -> Path | None:
    """Do it: the old file is kept beside the new one, which takes its place at once. Returns where the old one is kept.

    Raises:
        FailedPrecondition: the file has been changed meanwhile, or cannot be written.
    """
    path, kept = change.path, None
    try:
        if (path.read_bytes() if path.exists() else None) != change.before:
            raise FailedPrecondition(f"{path} has been changed meanwhile", hint="do it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        if change.before is not None:
            kept = path.with_name(path.name + ".bak")
            shutil.copy2(path, kept)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(change.after)
                file.flush()
                os.fsync(file.fileno())
            if kept is not None:
                shutil.copymode(path, fresh)
            os.replace(fresh, path)
        finally:
            Path(fresh).unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be written: {error.strerror}") from error
    return kept


def _entry(client: Client, server: Entry) -> dict[str, Any]:
    return {"type": "stdio", **server} if client.typed else dict(server)


def _merged(there: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """Our entry with what its owner has added to it: a time limit, say, or a key in its environment."""
    if not isinstance(there, dict):
        return entry
    env = {**there.get("env", {}), **entry.get("env", {})}
    return {**there, **entry} | ({"env": env} if env else {})


def _read(client: Client, text: str) -> Any:
    if not text.strip():
        return {}
    value = tomllib.loads(text) if client.toml else strict_json.read(text.encode())
    servers = value.get(client.key, {}) if isinstance(value, dict) else None
    if not isinstance(servers, dict):
        raise ValueError(f"{client.key} is not what it should be")
    return value


def _found(client: Client, text: str) -> Any:
    return _read(client, text).get(client.key, {}).get(NAME)


def _without(client: Client, text: str) -> Any:
    """All of it but our entry."""
    value = _read(client, text)
    servers = {name: entry for name, entry in value.get(client.key, {}).items() if name != NAME}
    return {key: entry for key, entry in value.items() if key != client.key} | ({client.key: servers} if servers else {})


# JSON


def _in_json(client: Client, text: str, entry: Entry) -> tuple[int, int, str]:
    """Which part of the text to replace, and by what."""
    if _found(client, text) == entry:
        return 0, 0, ""
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = match[1] if (match := _INDENT.search(text)) else "  "
    members, close = _members(text, _skip(text, 0))
    if client.key not in members:
        return _appended(text, close, bool(members), client.key, {NAME: entry}, indent, 1, newline)
    start, _ = members[client.key]
    servers, close = _members(text, start)
    if NAME not in servers:
        return _appended(text, close, bool(servers), NAME, entry, indent, 2, newline)
    return *servers[NAME], _block(entry, indent, 2, newline)


def _appended(text: str, close: int, more: bool, key: str, value: Any, indent: str, depth: int, newline: str) -> tuple[int, int, str]:
    """One more member before the brace at `close`."""
    end = len(text[:close].rstrip())
    member = f"{',' if more else ''}{newline}{indent * depth}{json.dumps(key)}: {_block(value, indent, depth, newline)}"
    return end, end, member if "\n" in text[end:close] else f"{member}{newline}{indent * (depth - 1)}"


def _block(value: Any, indent: str, depth: int, newline: str) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False).replace("\n", newline + indent * depth)


def _members(text: str, start: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Where the values of the object at `start` are, by key, and where it closes. The text is known to be JSON."""
    decoder = json.JSONDecoder()
    found: dict[str, tuple[int, int]] = {}
    place = _skip(text, start + 1)
    while text[place] != "}":
        key, place = decoder.raw_decode(text, place)
        value = _skip(text, _skip(text, place) + 1)
        _, place = decoder.raw_decode(text, value)
        found[key] = (value, place)
        place = _skip(text, place)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return found, place


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


# TOML


def _in_toml(client: Client, text: str, entry: Entry) -> tuple[int, int, str]:
    """As for JSON. Our own tables are replaced where they stand; comments elsewhere stay."""
    if _found(client, text) == entry:
        return 0, 0, ""
    newline = "\r\n" if "\r\n" in text else "\n"
    written = _toml(entry).replace("\n", newline)
    lines = text.splitlines(keepends=True)
    ours = [number for number, line in enumerate(lines) if _OURS.match(line)]
    if not ours:
        gap = "" if text.endswith("\n" * 2) else newline if text.endswith("\n") else newline * 2
        return len(text), len(text), gap + written
    last = next((number for number in range(ours[-1] + 1, len(lines)) if _HEADER.match(lines[number])), len(lines))
    while not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#"):  # what stands above the next table is that one's
        last -= 1
    sizes = [len(line) for line in lines]
    return sum(sizes[: ours[0]]), sum(sizes[:last]), written


def _toml(server: Entry) -> str:
    """The tables of an entry. What holds tables of its own besides env comes out as no TOML, and is refused for it."""
    lines = [f"[mcp_servers.{NAME}]"]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in server.items() if key != "env"]
    if env := server.get("env"):
        lines += ["", f"[mcp_servers.{NAME}.env]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in env.items())]
    return "\n".join(lines) + "\n"
