"""Every way in, made alike: `call` a unit, `call_text` with arguments as raw JSON, and see ok or the error's code."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from functools import partial
from keyword import iskeyword
from pathlib import Path
from typing import Any, Protocol

import httpx
import httpx2
import jsonschema
from anyio.from_thread import BlockingPortal
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from aima_lib import Aima, AimaError, AsyncAima
from aima_lib.errors import BY_CODE
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from tests.world import HostProcess, environment

REGISTRY = Registry.described()
KEY = "io.aima/idempotencyKey"
TOKEN = "io.aima/token"
FORKING = Path(__file__).with_name("cli_fork.py")
ERROR = jsonschema.Draft202012Validator(json.loads((Path(__file__).parents[2] / "schemas/types/error.json").read_text(encoding="utf-8")))
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """`ok` and the output, or the error's code and the error."""

    code: str
    body: Mapping[str, Any]


def ok(body: Mapping[str, Any]) -> Outcome:
    return Outcome("ok", body)


def refused(body: Mapping[str, Any]) -> Outcome:
    """An error, whose shape and next calls are looked at wherever one is seen."""
    ERROR.validate(body)
    for call in body.get("next", []):
        unit = REGISTRY.get(call["unit"])
        assert unit is not None, f"{body['message']!r} leads to {call['unit']}, which does not exist"
        wrong = unit.input.first_error(call["arguments"])
        assert wrong is None, f"{body['message']!r} leads to {call}, which is not valid: {wrong}"
    return Outcome(body["code"], body)


class Face(Protocol):
    """A way in. `home` is the home it leads to."""

    home: Home

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        """Call a unit."""
        ...


def carried_out(face: Face, owner: Face, name: str, arguments: Arguments, key: str | None = None) -> Outcome:
    """The call's outcome; where it takes a second step, that too, and where it takes somebody else's word, the owner's."""
    outcome = face.call(name, arguments, key)
    if outcome.code != "approval_required":
        return outcome
    plan = outcome.body["details"]["plan"]
    if plan["policy"] == "approve":
        assert owner.call("approval.approve", {"approval_id": plan["id"]}).code == "ok"
    return face.call(name, arguments, key, plan["token"])


class Library:
    """`Aima`, blocking: attached to the world's host, or hosting a home of its own in this process."""

    def __init__(self, aima: Aima, home: Home, cwd: Path) -> None:
        self.aima, self.home, self._cwd = aima, home, cwd

    def within(self, work: Callable[[Aima], None]) -> None:
        """Do something with the library where paths are looked for."""
        with chdir(self._cwd):
            work(self.aima)

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        domain, action = name.split(".")
        keyed = ({} if key is None else {"idempotency_key": key}) | ({} if token is None else {"token": token})
        try:
            with chdir(self._cwd):
                return ok(getattr(getattr(self.aima, domain), f"{action}_" if iskeyword(action) else action)(**arguments, **keyed))
        except AimaError as error:
            return refused(error.as_dict())


class AsyncLibrary:
    """`AsyncAima`, awaited on a loop of its own."""

    def __init__(self, portal: BlockingPortal, aima: AsyncAima, home: Home) -> None:
        self.portal, self.aima, self.home = portal, aima, home

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        try:
            return ok(self.portal.call(partial(self.aima.call, name, arguments, idempotency_key=key, token=token)))
        except AimaError as error:
            return refused(error.as_dict())


class Http:
    """POST /units/{domain}/{action}."""

    def __init__(self, client: httpx.Client, home: Home) -> None:
        self.client, self.home = client, home

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        headers = ({} if key is None else {"Idempotency-Key": key}) | ({} if token is None else {"Aima-Token": token})
        return self._post(name, json.dumps(arguments), headers)

    def call_text(self, name: str, text: str) -> Outcome:
        return self._post(name, text, {})

    def _post(self, name: str, text: str, headers: Mapping[str, str]) -> Outcome:
        path = f"/units/{name.replace('.', '/')}"
        return http_outcome(self.client.post(path, content=text.encode(), headers={"Content-Type": "application/json", **headers}))


class HttpGet:
    """GET /units/{domain}/{action}?…, which queries have."""

    def __init__(self, client: httpx.Client, home: Home) -> None:
        self.client, self.home = client, home

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        pairs: list[tuple[str, str | int | float | bool | None]] = []
        for name_, value in arguments.items():
            pairs += [(name_, _in_url(item)) for item in (value if isinstance(value, list) else [value])]
        return http_outcome(self.client.get(f"/units/{name.replace('.', '/')}", params=pairs))


def _in_url(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def http_outcome(response: httpx.Response) -> Outcome:
    """200 and the output, or the status of the error's class and a problem that carries the error."""
    if response.is_success:
        assert response.headers["content-type"].startswith("application/json")
        return ok(response.json())
    body = response.json()
    assert response.headers["content-type"].startswith("application/problem+json")
    assert body.pop("status") == response.status_code
    assert body.pop("type")
    assert body.pop("title")
    assert BY_CODE[body["code"]].http_status == response.status_code or response.status_code in (405, 406, 413, 415, 421, 431)
    return refused(body)


class Mcp:
    """The SDK's own client, over whichever transport and era it was connected with."""

    def __init__(self, portal: BlockingPortal, client: Client, home: Home) -> None:
        self.portal, self.client, self.home = portal, client, home

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        meta: Any = ({} if key is None else {KEY: key}) | ({} if token is None else {TOKEN: token}) or None
        try:
            result = self.portal.call(partial(self.client.call_tool, name.replace(".", "_"), dict(arguments), meta=meta))
        except MCPError as error:
            assert error.error.data is not None, error.error
            return refused(error.error.data)
        assert result.structured_content is not None
        return refused(result.structured_content) if result.is_error else ok(result.structured_content)


def mcp_stdio(stack: ExitStack, portal: BlockingPortal, host: HostProcess) -> Mcp:
    """One long-lived `aima mcp`, attached to the host. It lists everything: the client then judges each output by its outputSchema."""
    words = ["-m", "aima_mcp.main", "mcp", "--profile", "full"]
    parameters = StdioServerParameters(command=str(host.python), args=words, env=environment(host.home.path), cwd=str(host.cwd))
    return _connected(stack, portal, partial(Client, stdio_client(parameters), mode="auto"), host)


def mcp_http(stack: ExitStack, portal: BlockingPortal, host: HostProcess, mode: str, key: str | None = None) -> Mcp:
    """POST /mcp/full, in one of the protocol's two eras; with a key that is not the owner's when one is given."""
    headers = host.headers if key is None else {"Authorization": f"Bearer {key}"}

    async def http_client() -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers=headers, timeout=120, trust_env=False)

    http = stack.enter_context(portal.wrap_async_context_manager(portal.call(http_client)))
    return _connected(stack, portal, partial(Client, streamable_http_client(f"{host.url}/mcp/full", http_client=http), mode=mode), host)


def _connected(stack: ExitStack, portal: BlockingPortal, make: Callable[[], Client], host: HostProcess) -> Mcp:
    async def made() -> Client:
        return make()

    client = stack.enter_context(portal.wrap_async_context_manager(portal.call(made)))
    return Mcp(portal, client, host.home)


class McpRaw:
    """JSON-RPC written by hand: for messages that no client would send. `exchange` posts one message and returns the reply."""

    def __init__(self, exchange: Callable[[str], Mapping[str, Any]], home: Home, meta: Mapping[str, Any]) -> None:
        self.home, self._exchange, self._meta = home, exchange, meta
        self._ids = itertools.count(1000)

    def call_text(self, name: str, text: str) -> Outcome:
        params = f'"name": {json.dumps(name.replace(".", "_"))}, "arguments": {text}, "_meta": {json.dumps(self._meta)}'
        reply = self._exchange(f'{{"jsonrpc": "2.0", "id": {next(self._ids)}, "method": "tools/call", "params": {{{params}}}}}')
        if "error" in reply:
            return refused(reply["error"]["data"])
        result = reply["result"]
        return refused(result["structuredContent"]) if result.get("isError") else ok(result["structuredContent"])


class Cli:
    """`aima <domain> <action> --json --input @-`: a process for each call."""

    def __init__(self, host: HostProcess) -> None:
        self.home, self._host = host.home, host

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        return self.call_text(name, json.dumps(arguments), key, token)

    def call_text(self, name: str, text: str, key: str | None = None, token: str | None = None) -> Outcome:
        command = [str(self._host.python), "-m", "aima_mcp.main", *cli_words(name, key, token)]
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            cwd=self._host.cwd,
            env=environment(self.home.path),
            timeout=120,
            check=False,
        )
        return cli_outcome(done.returncode, done.stdout, done.stderr)


class CliFork:
    """The same command line in a fork of a process that has imported it already: a tenth of the time, for the many malformed calls."""

    def __init__(self, stack: ExitStack, host: HostProcess, key: str | None = None) -> None:
        self.home = host.home
        self._process = stack.enter_context(
            subprocess.Popen(
                [str(host.python), str(FORKING)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=host.cwd,
                env=environment(host.home.path) | ({} if key is None else {"AIMA_KEY": key}),
            )
        )
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        assert self._process.stdin is not None
        stack.callback(self._process.stdin.close)

    def call(self, name: str, arguments: Arguments, key: str | None = None, token: str | None = None) -> Outcome:
        return self.call_text(name, json.dumps(arguments), key, token)

    def call_text(self, name: str, text: str, key: str | None = None, token: str | None = None) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = {stream: self._folder / stream for stream in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(text, encoding="utf-8")
        order = {"argv": cli_words(name, key, token), **{stream: str(path) for stream, path in files.items()}}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return cli_outcome(code, files["stdout"].read_text(encoding="utf-8"), files["stderr"].read_text(encoding="utf-8"))


def cli_words(name: str, key: str | None, token: str | None = None) -> list[str]:
    """The command line of a call whose arguments come by standard input."""
    whole = "--arguments" if "input" in REGISTRY[name].definition["inputSchema"]["properties"] else "--input"
    more = [*([] if key is None else ["--idempotency-key", key]), *([] if token is None else ["--token", token])]
    return [*name.split("."), "--json", whole, "@-", *more]


def cli_outcome(code: int, stdout: str, stderr: str) -> Outcome:
    """Exit code 0 and the output on stdout, or the exit code of the error's class and the error as JSON on stderr."""
    if code == 0:
        return ok(json.loads(stdout))
    lines = stderr.splitlines()  # progress may come before it
    body = json.loads("\n".join(lines[next(place for place, line in enumerate(lines) if line.startswith("{")) :]))
    assert BY_CODE[body["code"]].exit_code == code
    assert stdout == ""
    return refused(body)
