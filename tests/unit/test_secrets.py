"""Secrets: sealed in the store, read by nothing but what needs them, told to nobody; and what stays hidden of arguments."""

from __future__ import annotations

import io
import logging
import os
import sqlite3
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from aima_lib.gateway import Gateway
from aima_lib.infra.crypto import Unreadable, Vault
from aima_lib.infra.egress import Egress
from aima_lib.infra.home import Home
from aima_lib.infra.web import Web
from aima_lib.redact import HIDDEN, redacted
from aima_lib.registry import Judge, Registry, SchemaError
from aima_lib.runtime import host
from aima_lib.sources import huggingface
from aima_lib.sources.base import Request
from aima_mcp.faces.cli import DOTTED, UnitCommand, arguments, command_line, definition
from tests.hub import Hub
from tests.workshop import OPEN, agreed, unit, write_handlers, write_schemas
from tests.world import environment

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
TOKEN = "hf_LikeNothingElse4711"
TOKEN_NAME = "huggingface_token"


# At rest


async def test_a_secret_is_kept_replaced_and_deleted_and_never_told(hosted: Gateway, home: Home) -> None:
    first = (await hosted.call("secret.put", {"name": TOKEN_NAME, "value": "hf_before"}))["secret"]
    second = (await hosted.call("secret.put", {"name": TOKEN_NAME, "value": TOKEN}))["secret"]
    assert second["created_at"] == first["created_at"] <= first["updated_at"] < second["updated_at"]
    assert await hosted.call("secret.list") == {"secrets": [second]}
    assert hosted.services.secrets.read(TOKEN_NAME) == TOKEN
    assert await agreed(hosted, "secret.delete", {"name": TOKEN_NAME}) == {"deleted": TOKEN_NAME}
    assert hosted.services.secrets.read(TOKEN_NAME) is None
    with pytest.raises(NotFound):
        await agreed(hosted, "secret.delete", {"name": TOKEN_NAME})


async def test_what_lies_on_the_disk_is_no_secret_and_its_key_is_elsewhere(home: Home, anyio_backend: str) -> None:
    async with host(home) as gateway:
        await gateway.call("secret.put", {"name": TOKEN_NAME, "value": TOKEN})
        inside = b"".join(path.read_bytes() for path in home.path.glob("aima.db*"))
    after = (home.path / "aima.db").read_bytes()
    assert TOKEN_NAME.encode() in after and b"ciphertext" in after
    for text in (TOKEN, home.secret_path.read_text(encoding="utf-8").strip()):
        assert text.encode() not in inside + after
    assert stat.S_IMODE(home.secret_path.stat().st_mode) == 0o600
    async with host(home) as gateway:
        assert gateway.services.secrets.read(TOKEN_NAME) == TOKEN


def test_a_seal_opens_under_its_name_and_its_key_and_whole_and_nowhere_else() -> None:
    vault = Vault(b"a" * 32)
    sealed = vault.seal("one", TOKEN)
    assert vault.open("one", sealed) == TOKEN
    assert vault.seal("one", TOKEN) != sealed, "each has a nonce of its own"
    damaged = [
        sealed | {"ciphertext": sealed["ciphertext"][:-8] + "AAAAAAA="},
        sealed | {"nonce": vault.seal("one", TOKEN)["nonce"]},
        sealed | {"nonce": "!"},
        {"nonce": sealed["nonce"]},
        sealed | {"ciphertext": None},
    ]
    attempts: list[tuple[Vault, str, Any]] = [
        (vault, "two", sealed),
        (Vault(b"b" * 32), "one", sealed),
        *((vault, "one", each) for each in damaged),
    ]
    for opener, name, what in attempts:
        with pytest.raises(Unreadable):
            opener.open(name, what)


@pytest.mark.parametrize("loss", ["gone", "another"])
async def test_a_lost_key_file_says_which_secrets_must_be_put_again(
    home: Home, anyio_backend: str, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(home) as gateway:
        await gateway.call("secret.put", {"name": TOKEN_NAME, "value": TOKEN})
        await agreed(gateway, "key.create", {"name": "k", "scopes": ["read"]})
    home.secret_path.unlink()
    if loss == "another":
        home.secret_path.write_text("ab" * 32, encoding="utf-8")
    with caplog.at_level(logging.ERROR):
        async with host(home) as gateway:
            assert f"put again: {TOKEN_NAME}" in caplog.text
            assert ("open nothing" in caplog.text) == (loss == "gone"), "who looks first must not make the file that the other misses"
            assert [secret["status"] for secret in (await gateway.call("secret.list"))["secrets"]] == ["lost"]
            with pytest.raises(FailedPrecondition, match=f"{TOKEN_NAME} is lost") as caught:
                await gateway.call("model.estimate_resources", {"repo": "a/m"})
            assert "put it again" in str(caught.value.hint)
            await gateway.call("secret.put", {"name": TOKEN_NAME, "value": TOKEN})
            assert gateway.services.secrets.read(TOKEN_NAME) == TOKEN
    async with host(home) as gateway:
        assert gateway.services.secrets.read(TOKEN_NAME) == TOKEN


async def test_a_damaged_key_file_is_named(home: Home, anyio_backend: str) -> None:
    home.secret_path.write_text("not hexadecimal", encoding="utf-8")
    with pytest.raises(FailedPrecondition, match=r"keys\.secret is damaged"):
        async with host(home):
            pass


# Who reads it


async def test_the_hub_is_shown_the_secret_before_the_environments(
    home: Home, anyio_backend: str, tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (fixtures / "tiny.gguf").read_bytes()
    with Hub(tmp_path / "hub") as hub:
        hub.add_repo("a/p", {"p-F32.gguf": weights}, token=TOKEN)
        (home.path / "config.toml").write_text(hub.config, encoding="utf-8")
        monkeypatch.setenv("HUB_TOKEN", "wrong")
        async with host(home) as gateway:
            with pytest.raises(PermissionDenied) as caught:
                await gateway.call("model.estimate_resources", {"repo": "a/p"})
            assert f"put the secret {TOKEN_NAME}, or set HUB_TOKEN" in str(caught.value.hint)
            await gateway.call("secret.put", {"name": TOKEN_NAME, "value": TOKEN})
            assert (await gateway.call("model.estimate_resources", {"repo": "a/p"}))["disk_bytes"] == len(weights)


@pytest.mark.parametrize("token", [f"{TOKEN}\nx", f"{TOKEN} x", f"{TOKEN}\u00e9"])
async def test_a_token_that_is_none_is_refused_and_not_repeated(
    anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """The HTTP client would, in its own error."""
    monkeypatch.setenv("HF_TOKEN", token)
    with Hub(tmp_path / "hub") as hub, pytest.raises(FailedPrecondition) as caught:
        await huggingface.resolve(Request("a/p"), {"huggingface_endpoint": hub.url}, Web(Egress(endpoints=lambda: [hub.url])))
    assert "HF_TOKEN holds what no token holds" in str(caught.value)
    assert TOKEN not in str(caught.value.as_dict())


# What may be told of arguments

SECRET = {"type": "string", "writeOnly": True, "format": "password", "maxLength": 8}
DEEP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "value": SECRET,
        "login": {"type": "object", "properties": {"user": {"type": "string"}, "password": SECRET}},
        "many": {"type": "array", "items": {"type": "object", "properties": {"key": SECRET, "place": {"type": "string"}}}},
        "headers": {"type": "object", "additionalProperties": SECRET},
        "either": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"token": SECRET, "kind": {"type": "string"}}}]},
    },
}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "n", "count": 1, "value": "S"}, {"name": "n", "count": 1, "value": HIDDEN}),
        ({"value": ["S"], "login": {"user": "u", "password": {"a": "S"}}}, {"value": HIDDEN, "login": {"user": "u", "password": HIDDEN}}),
        ({"many": [{"key": "S", "place": "p"}, "S"]}, {"many": [{"key": HIDDEN, "place": "p"}, HIDDEN]}),
        ({"headers": {"authorization": "S"}}, {"headers": {"authorization": HIDDEN}}),
        ({"either": {"token": "S", "kind": "k"}}, {"either": {"token": HIDDEN, "kind": "k"}}),
        ({"login": "S", "many": "S", "headers": ["S"]}, {"login": HIDDEN, "many": HIDDEN, "headers": HIDDEN}),
        ({"valeu": "S", "S-S": 1, "login": {"pass": "S"}}, {"valeu": HIDDEN, HIDDEN: HIDDEN, "login": {"pass": HIDDEN}}),
        ("S", {}),
    ],
)  # fmt: skip
def test_what_a_schema_marks_is_hidden_however_deep(given: Any, told: Any) -> None:
    assert redacted(DEEP, given) == told


def test_without_a_mark_all_is_told() -> None:
    given = {"name": "n", "unknown": ["x"]}
    assert redacted({"type": "object", "properties": {"name": {"type": "string"}}}, given) == given


@pytest.mark.parametrize(
    "given",
    [
        {"name": "n", "value": TOKEN}, {"name": "n", "value": [TOKEN]}, {"name": "n", "login": TOKEN}, {"name": "n", "many": [{"key": TOKEN}]},
        {"name": "n", "either": {"token": TOKEN}}, {"name": "n", TOKEN: 1}, {"value": TOKEN}, [TOKEN], TOKEN, {"name": "n", "count": TOKEN},
        {"name": "n", "value": f"{TOKEN}\ud800"}, {"name": "n", "login": {"password": float("nan"), "user": TOKEN}},
    ],
)  # fmt: skip
def test_no_error_repeats_what_is_marked(given: Any) -> None:
    error = Judge(DEEP).first_error(given)
    assert error is not None and TOKEN not in error


def test_an_error_says_all_the_same_what_is_wrong_and_where() -> None:
    assert Judge(DEEP).first_error({"name": "n", "value": TOKEN}) == "value: *** is longer than 8 characters"
    assert Judge(DEEP).first_error({"name": "n", "valeu": TOKEN}) == "Additional properties are not allowed ('valeu')"


@pytest.mark.parametrize("name", ["inference.chat", "inference.complete", "inference.embed", "unit.call"])
def test_a_prompt_is_hidden_like_a_secret_but_may_be_typed(name: str) -> None:
    found = Registry.described()[name].definition
    good = next(example["input"] for example in found["examples"] if example["input"].keys() - {"name"} and "output" in example)
    told = redacted(found["inputSchema"], good)
    hidden = {key for key in good if told[key] == HIDDEN}
    assert len(hidden) == 1 and {key: value for key, value in told.items() if key not in hidden} == {
        key: good[key] for key in set(good) - hidden
    }
    assert "-stdin" not in command_line(name, good)


# What does not load


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"durable": True, "inputSchema": DEEP}, "durable, so its input is kept"),
        ({"outputSchema": DEEP}, "outputSchema has a writeOnly property"),
        ({"streamSchema": DEEP}, "streamSchema has a writeOnly property"),
        (
            {"inputSchema": OPEN | {"properties": {"value": {"type": "string", "format": "password"}}}},
            "value is a password, so it is writeOnly",
        ),
    ],
)
def test_a_unit_that_would_keep_a_secret_does_not_load(
    tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any], why: str
) -> None:
    handlers = write_handlers(
        tmp_path, f"handlers_{abs(hash(request.node.name))}", "@handles('thing.keep')\nasync def keep(ctx):\n    return {}\n"
    )
    with pytest.raises(SchemaError, match=rf"schemas/thing/keep\.json.*{why}"):
        Registry.load(handlers, write_schemas(tmp_path / "schemas", unit("command", "thing.keep", **changes)))


# On the command line


def read(*line: str) -> dict[str, Any]:
    found = definition("secret.put")
    assert found is not None
    command = UnitCommand(found)
    context = command.make_context(command.name, [*line])
    return arguments.gather(found["inputSchema"], context.params, context.meta[DOTTED])


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode()), isatty=lambda: False))


@pytest.mark.parametrize("line", [("--value", TOKEN), (f"--value={TOKEN}",), ("--input", f'{{"value": "{TOKEN}"}}')])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(line: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="every user of this machine can read it") as caught:
        read(TOKEN_NAME, *line)
    assert "--value-stdin" in str(caught.value.hint) and TOKEN not in str(caught.value.as_dict())


@pytest.mark.parametrize("line", [("--value-stdin",), ("--value", "@-"), ("--value=@-",)])
def test_a_secret_comes_by_standard_input(line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, f"{TOKEN}\n")
    assert read(TOKEN_NAME, *line) == {"name": TOKEN_NAME, "value": TOKEN}


def test_a_secret_comes_from_a_file_or_with_all_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_bytes(f"{TOKEN}\r\n".encode())
    assert read(TOKEN_NAME, "--value", f"@{tmp_path / 'token'}")["value"] == TOKEN
    type_in(monkeypatch, f'{{"value": "{TOKEN}"}}')
    assert read(TOKEN_NAME, "--input", "@-")["value"] == TOKEN
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read(TOKEN_NAME, "--value", f"@{tmp_path / 'none'}")
    (tmp_path / "token").write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="is not UTF-8"):
        read(TOKEN_NAME, "--value", f"@{tmp_path / 'token'}")


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, TOKEN)
    assert read(TOKEN_NAME) == {"name": TOKEN_NAME}


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_it_is_asked_for_without_an_echo(home: Home) -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "aima_mcp.main", "secret", "put", TOKEN_NAME],
            environment(home.path) | {"PYTHONPATH": str(ROOT)},
        )
    shown = b""
    while b"value:" not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, f"{TOKEN}\n".encode())
    with pytest.raises(OSError):  # the terminal is gone once the command has ended
        while True:
            shown += os.read(terminal, 1024)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert b"ready" in shown and TOKEN.encode() not in shown
    with sqlite3.connect(home.path / "aima.db") as db:
        assert db.execute("SELECT count(*) FROM documents WHERE kind = 'secret'").fetchone() == (1,)
    db.close()
