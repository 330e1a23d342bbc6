"""Secrets planted in every input that takes one, and in what is said to models; then looked for wherever anything is kept or told."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from anyio.from_thread import BlockingPortal

from aima_lib import Aima
from tests.contract.faces import Cli, Face, Http, Library, Outcome, mcp_http, mcp_stdio
from tests.hub import Hub
from tests.world import HostProcess, environment, furnish, until

FACES = ("library", "http", "mcp_http", "mcp_http_handshake", "mcp_stdio", "cli")
INFERENCE = ("inference.chat", "inference.complete", "inference.embed")
OWN = ("key", "keys.secret")  # the files that are there to hold a secret


@dataclass
class Garden:
    """A host of its own, everything planted there, and every refusal it gave."""

    host: HostProcess
    stack: ExitStack
    portal: BlockingPortal
    seeds: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    opened: dict[str, Face] = field(default_factory=dict)

    def plant(self, where: str) -> str:
        """A secret like no other. Letters and digits only: nothing that writes it has to escape it."""
        self.seeds[where] = f"planted{secrets.token_hex(12)}"
        return self.seeds[where]

    def face(self, name: str) -> Face:
        if name not in self.opened:
            host, stack, portal = self.host, self.stack, self.portal
            self.opened[name] = {
                "library": lambda: Library(stack.enter_context(Aima(host.home.path)), host.home, host.cwd),
                "http": lambda: Http(stack.enter_context(host.client()), host.home),
                "mcp_http": partial(mcp_http, stack, portal, host, "2026-07-28"),
                "mcp_http_handshake": partial(mcp_http, stack, portal, host, "legacy"),
                "mcp_stdio": partial(mcp_stdio, stack, portal, host),
                "cli": lambda: Cli(host),
            }[name]()
        return self.opened[name]

    def call(self, face: str, unit: str, arguments: Mapping[str, Any], expected: str) -> Outcome:
        outcome = self.face(face).call(unit, arguments)
        if outcome.code == "approval_required" and expected != "approval_required":
            self.told.append((f"{face} {unit}", json.dumps(outcome.body["message"], ensure_ascii=False)))
            outcome = self.face(face).call(unit, arguments, token=outcome.body["details"]["plan"]["token"])
        if outcome.code != "ok":
            self.told.append((f"{face} {unit}", json.dumps(outcome.body, ensure_ascii=False)))
        assert outcome.code == expected, (face, unit, outcome)
        return outcome

    def send(self, method: str, path: str, expected: int | None, **request: Any) -> httpx.Response:
        """Any request; what comes back is kept when it is a refusal."""
        headers = self.host.headers | request.pop("headers", {})
        with httpx.Client(base_url=self.host.url, trust_env=False, timeout=120) as client:
            answer = client.request(method, path, headers=headers, **request)
        if not answer.is_success or '"error"' in answer.text:
            self.told.append((f"{method} {path}", f"{answer.headers} {answer.text}"))
        assert expected in (None, answer.status_code), (path, answer.text)
        return answer

    def found_in(self, text: bytes | str) -> list[str]:
        body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        return [where for where, seed in self.seeds.items() if seed.encode() in body]


@pytest.fixture(scope="module")
def garden(
    python: Path, config: str, fixtures: Path, hub: Hub, portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Garden]:
    host = HostProcess(python, tmp_path_factory.mktemp("planted") / "home", fixtures, config)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        made = Garden(host, stack, portal)
        for name in ("HUB_TOKEN", "AIMA_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
            patch.setenv(name, made.plant(f"environment {name}"))
        host.start()
        for name in ("HUB_TOKEN", "AIMA_KEY"):
            patch.delenv(name)
        stack.callback(host.stop)
        made.seeds["the owner's key"] = host.home.key()
        hub.add_repo("planted/private-GGUF", {"p-F32.gguf": (fixtures / "tiny.gguf").read_bytes()}, token=made.plant("hub token"))
        with Aima(host.home.path) as aima:
            furnish(aima)
            aima.call("service.create", {"model_id": "tiny", "name": "vectors", "engine": "llamacpp", "options": {"embedding": True}})
            until(lambda: aima.call("service.get", {"service_id": "vectors"})["service"]["status"] == "running", 60, "the service")
        sow_secrets(made)
        sow_keys(made)
        sow_prompts(made)
        sow_openai(made)
        sow_garbage(made)
        yield made


def sow_secrets(garden: Garden) -> None:
    """The hub's token: used, wrong, misplaced, too long, of a wrong type."""
    name = "huggingface_token"
    for face in FACES:
        wrong = garden.plant(f"{face}: refused value")
        cases = [
            {"name": name, "value": wrong * 200}, {"name": name, "value": f"{wrong} {wrong}"}, {"name": name, "value": [wrong]},
            {"name": name, "value": {wrong: wrong}}, {"name": name, wrong: "x"}, {"name": name, "token": wrong}, {"value": wrong},
            {"name": name, "value": wrong, "more": wrong},
        ]  # fmt: skip
        for arguments in cases:
            garden.call(face, "secret.put", arguments, "invalid_argument")
            garden.call(face, "unit.call", {"name": "secret.put", "arguments": arguments}, "invalid_argument")
        garden.call(face, "unit.call", {"name": "secret.put", "arguments": wrong}, "invalid_argument")
        garden.call(face, "secret.put", {"name": name, "value": garden.plant(f"{face}: replaced value")}, "ok")
    garden.call("http", "model.pull", {"repo": "planted/private-GGUF"}, "permission_denied")
    garden.call("http", "secret.put", {"name": name, "value": garden.seeds["hub token"]}, "ok")
    garden.call("http", "model.pull", {"repo": "planted/private-GGUF", "name": "private"}, "ok")
    login = f"http://me:{garden.plant('login of a mirror')}@127.0.0.1:9/simple"
    for face in FACES:
        garden.call(face, "model.pull", {"repo": "some-package", "source": "pypi", "mirror": login}, "invalid_argument")
    command = [str(garden.host.python), "-m", "aima_mcp.main", "secret", "put", name, "--value", garden.plant("value on a command line")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(garden.host.home.path), check=False)
    assert done.returncode == 2, done
    garden.told.append(("aima secret put --value", done.stdout + done.stderr))


def sow_keys(garden: Garden) -> None:
    """Keys: made, used, revoked, invented."""
    made = garden.call("http", "key.create", {"name": "guest", "scopes": ["read"]}, "ok").body
    garden.seeds["a key"] = made["secret"]
    key = {"Authorization": f"Bearer {made['secret']}"}
    garden.send("GET", "/units/model/list", 200, headers=key)
    garden.send("POST", "/units/model/delete", 403, headers=key, json={"model_id": "tiny"})
    garden.call("http", "key.revoke", {"key_id": made["key"]["id"]}, "ok")
    for path in ("/units/model/list", "/v1/models", "/mcp", "/nowhere"):
        garden.send("GET", path, 401, headers=key)
        garden.send("GET", path, 401, headers={"Authorization": f"Bearer {garden.plant(f'invented key for {path}')}"})
    invented = f"aima-{garden.plant('invented key of our own shape')}"
    garden.send("GET", "/units/model/list", 401, headers={"Authorization": "", "x-api-key": invented})


def sow_prompts(garden: Garden) -> None:
    """What is said to a model, in calls that succeed and calls that do not."""
    for face in FACES:
        said = partial(garden.plant)
        turn = [{"role": "system", "content": said(f"{face}: system")}, {"role": "user", "content": said(f"{face}: user")}]
        short = {"max_tokens": 2}
        garden.call(face, "inference.chat", {"model": "tiny", "messages": turn, **short}, "ok")
        garden.call(face, "inference.complete", {"model": "tiny", "prompt": said(f"{face}: prompt"), **short}, "ok")
        garden.call(face, "inference.embed", {"model": "vectors", "input": [said(f"{face}: text")]}, "ok")
        wrong = said(f"{face}: prompt of a refused call")
        part = {"type": "text", "text": wrong}
        asked: list[tuple[str, Mapping[str, Any], str]] = [
            ("inference.chat", {"model": "tiny", "messages": wrong}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "messages": [wrong]}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "messages": [{"role": wrong, "content": wrong}]}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "messages": [{"role": "user", "content": wrong, wrong: wrong}]}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "messages": [{"role": "user", "content": [part, {"type": wrong}]}]}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "messages": [{"role": "user", "content": f"{wrong} " * 1500}]}, "invalid_argument"),
            ("inference.chat", {"model": "tiny", "prompt": wrong}, "invalid_argument"),
            ("inference.chat", {"model": "nobody", "messages": [{"role": "user", "content": wrong}]}, "not_found"),
            ("inference.complete", {"model": "tiny", "prompt": [wrong]}, "invalid_argument"),
            ("inference.complete", {"model": "tiny", "prompt": f"{wrong} " * 1500}, "invalid_argument"),
            ("inference.complete", {"model": "tiny", "prompt": wrong, "temperature": "warm"}, "invalid_argument"),
            ("inference.embed", {"model": "vectors", "input": [[wrong]]}, "invalid_argument"),
            ("inference.embed", {"model": "vectors", "input": [wrong, ""]}, "invalid_argument"),
            ("inference.embed", {"model": "tiny", "input": wrong}, "failed_precondition"),
        ]  # fmt: skip
        for unit, arguments, code in asked:
            garden.call(face, unit, arguments, code)
            garden.call(face, "unit.call", {"name": unit, "arguments": arguments}, code)


def sow_openai(garden: Garden) -> None:
    """The same through the dialect that passes bytes on to the engine."""
    chat, text, vectors = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
    user = [{"role": "user", "content": garden.plant("openai: chat")}]
    garden.send("POST", chat, 200, json={"model": "tiny", "messages": user, "max_tokens": 2})
    garden.send("POST", chat, 200, json={"model": "tiny", "messages": user, "max_tokens": 2, "stream": True})
    garden.send("POST", text, 200, json={"model": "tiny", "prompt": garden.plant("openai: prompt"), "max_tokens": 2})
    garden.send("POST", vectors, 200, json={"model": "vectors", "input": garden.plant("openai: text")})
    wrong = garden.plant("openai: prompt of a refused call")
    said = [{"role": "user", "content": wrong}]
    for body in (
        {"model": "tiny", "messages": wrong}, {"model": "tiny", "messages": [{"role": wrong, "content": {"a": wrong}}]},
        {"model": "tiny", "messages": [{"role": "user", "content": [{"type": wrong, wrong: wrong}]}]},
        {"model": "tiny", "messages": [{"role": "user", "content": f"{wrong} " * 1500}]},
        {"model": "tiny", "messages": said, "temperature": wrong}, {"model": "tiny", "messages": said, "stop": {wrong: wrong}},
        {"model": "tiny", "messages": said, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": wrong}}}]},
        {"model": "tiny", "messages": said, "grammar": f'root ::= "{wrong}'}, {"model": "tiny", "messages": said, "json_schema": {"type": wrong}},
        {"model": "tiny", "messages": said, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": wrong}}}},
    ):  # fmt: skip
        garden.send("POST", chat, None, json={"max_tokens": 2, **body})  # whether it is taken, the engine says
    for path, body in ((text, {"prompt": {wrong: wrong}}), (text, {"prompt": f"{wrong} " * 1500}), (vectors, {"input": {wrong: wrong}})):
        garden.send("POST", path, None, json={"model": "vectors" if path == vectors else "tiny", **body})
    garden.send("POST", chat, 404, json={"model": "nobody", "messages": said})


def sow_garbage(garden: Garden) -> None:
    """Bodies that nobody can read, and messages that no client would send."""
    seed = garden.plant("a body that is no JSON")
    bodies = [
        f'{{"value": "{seed}"',
        f'{{"value": "{seed}", "value": "{seed}"}}',
        f'{{"value": {seed}}}',
        f'"{seed}"',
        f'{{"v": "{seed}", "n": NaN}}',
    ]
    for path in ("/units/secret/put", "/units/inference/complete", "/v1/completions", "/mcp"):
        for body in [*bodies, f'{{"value": "{seed}\\ud800"}}']:
            garden.send(
                "POST",
                path,
                400,
                content=body,
                headers={"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
            )
    accept = {"Accept": "application/json, text/event-stream"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opened = garden.send("POST", "/mcp", 200, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=accept)
    session = accept | {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    for params in (
        {"name": "secret_put", "arguments": seed}, {"name": seed, "arguments": {}}, {"name": "inference_complete", "arguments": [seed]},
        {"name": {"a": seed}}, {"arguments": {"value": seed}}, {"name": "secret_put", "arguments": {}, "_meta": seed}, [seed], seed,
        {"name": "inference_complete", "arguments": {}, "_meta": {"io.aima/idempotencyKey": {"a": seed}}},
    ):  # fmt: skip
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        with httpx.Client(base_url=garden.host.url, headers=garden.host.headers | session, trust_env=False, timeout=60) as client:
            client.post("/mcp", json=message)  # what it says is for the sender of that very message alone
        for method in (seed, "prompts/get", "resources/read"):
            with httpx.Client(base_url=garden.host.url, headers=garden.host.headers | session, trust_env=False, timeout=60) as client:
                client.post("/mcp", json={**message, "method": method})


def test_no_refusal_repeats_a_secret(garden: Garden) -> None:
    assert len(garden.told) > 300
    leaks = [f"{where}: {text}" for where, text in garden.told if garden.found_in(text)]
    # A key that nobody knows may be repeated to whoever sent it, as long as it may be a key: a planted one may not.
    assert not leaks, "\n".join(leaks)


def test_nothing_on_the_disk_holds_a_secret(garden: Garden) -> None:
    home = garden.host.home.path
    files = [path for path in home.rglob("*") if path.is_file() and "models" not in path.relative_to(home).parts]
    names = {path.name for path in files}
    assert {"aima.db", "aima.db-wal", "serve.log"} <= names
    assert any(path.suffix == ".log" and path.stat().st_size for path in files if "llamacpp" in path.name), "the engines' logs"
    kept = [path for path in files if path.name not in OWN]
    leaks = [f"{path.name}: {line!r}" for path in kept for line in path.read_bytes().splitlines() if garden.found_in(line)]
    assert not leaks, "\n".join(leaks)


def test_no_event_holds_a_secret(garden: Garden) -> None:
    after, types = 0, set()
    while page := garden.call("http", "event.list", {"after": after, "limit": 1000}, "ok").body["events"]:
        assert garden.found_in(json.dumps(page)) == []
        types |= {event["type"] for event in page}
        after = page[-1]["seq"]
    assert {"inference.request_failed", "inference.request_completed", "key.created", "engine.started"} <= types


def test_no_list_or_resource_holds_a_secret(garden: Garden) -> None:
    for unit in ("secret.list", "key.list", "run.list", "service.list", "engine.list", "model.list", "inference.models", "system.info"):
        assert garden.found_in(json.dumps(garden.call("http", unit, {}, "ok").body)) == [], unit
    assert garden.found_in(garden.send("GET", "/metrics", 200).text) == []


def test_no_process_of_ours_shows_a_secret(garden: Garden) -> None:
    host = psutil.Process(garden.host.pid)
    assert garden.found_in(" ".join(host.cmdline())) == []
    kept = [json.loads(path.read_text()) for path in (garden.host.home.path / "instances").glob("*/state.json")]
    engines = [psutil.Process(state[pid]) for state in kept for pid in ("pid", "keeper_pid")]
    assert len(engines) == 4, "two engines and their keepers"
    for process in engines:
        assert garden.found_in(f"{process.cmdline()} {process.environ()}") == [], process
