"""The faces, each opened once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from aima_lib import Aima, AsyncAima
from aima_lib.infra.home import Home
from tests.contract.faces import AsyncLibrary, Cli, CliFork, Face, Http, HttpGet, Library, McpRaw, mcp_http, mcp_stdio
from tests.docker.daemon import Dockerd
from tests.standins import BUSYBOX, stand_ins
from tests.world import ROOTS, HostProcess, World, environment, furnish

MODERN = "2026-07-28"
HANDSHAKE = "2025-11-25"
CLIENT = {"name": "contract", "version": "1"}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
LAST = "zz_coverage"
IMAGES = ("qdrant", "minio")  # templates that the examples and tests here install


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has been exercised is counted when all else is done."""
    items.sort(key=lambda item: LAST in item.nodeid)


@pytest.fixture(scope="session")
def dockerd(world_docker: Dockerd) -> str | None:
    """Starts the daemon that the world's host looks for, with the images that are installed here; or why there is none."""
    why = Dockerd.lacks() or (None if BUSYBOX else "busybox is not installed (apt install busybox-static)")
    if why is None:
        try:
            world_docker.start()
        except OSError as error:
            return str(error)
        with closing(world_docker.api()) as api:
            stand_ins(api, *IMAGES)
    return why


def needs_docker(name: str, example: Mapping[str, Any]) -> bool:
    """Whether an example is true only where Docker is."""
    return any(call["unit"] == "app.install" for call in example.get("given", [])) or (name == "app.install" and "output" in example)


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """A loop for the faces that are awaited."""
    with start_blocking_portal("asyncio") as opened:
        yield opened


class Faces:
    """Opens each face when it is first asked for, and all the way out at the end."""

    def __init__(self, world: World, portal: BlockingPortal, embedded: Path, config: str) -> None:
        self._stack, self._world, self._portal = ExitStack(), world, portal
        self._embedded, self._config = embedded, config
        self._opened: dict[str, Any] = {}
        host, stack = world.host, self._stack
        self._makers: Mapping[str, Callable[[], Any]] = {
            "library": lambda: Library(world.aima, world.home, world.folder),
            "async_library": self._async_library,
            "embedded": self._embed,
            "http": lambda: Http(world.http, world.home),
            "http_get": lambda: HttpGet(world.http, world.home),
            "mcp_stdio": lambda: mcp_stdio(stack, portal, host),
            "mcp_http": lambda: mcp_http(stack, portal, host, MODERN),
            "mcp_http_handshake": lambda: mcp_http(stack, portal, host, "legacy"),
            "cli": lambda: Cli(host),
            "cli_fork": lambda: CliFork(stack, host),
            "raw_mcp_http": lambda: McpRaw(self._post, world.home, MODERN_META),
            "raw_mcp_http_handshake": self._raw_handshake,
            "raw_mcp_stdio": self._raw_stdio,
        }

    def __getitem__(self, name: str) -> Face:
        if name not in self._opened:
            self._opened[name] = self._makers[name]()
        face: Face = self._opened[name]
        return face

    def close(self) -> None:
        self._stack.close()

    def _async_library(self) -> AsyncLibrary:
        async def made() -> AsyncAima:
            return AsyncAima(self._world.home.path)

        aima = self._stack.enter_context(self._portal.wrap_async_context_manager(self._portal.call(made)))
        return AsyncLibrary(self._portal, aima, self._world.home)

    def _embed(self) -> Library:
        """A home hosted by this very process, furnished like the world."""
        home = Home(self._embedded)
        home.make()
        (home.path / "config.toml").write_text(self._config + ROOTS, encoding="utf-8")
        aima = self._stack.enter_context(Aima(home.path))
        for engine in ("llamacpp", "onnx", "espeak-ng", "faster-whisper"):
            self._stack.callback(aima.call, "engine.stop", {"name": engine, "force": True})
        face = Library(aima, home, self._world.folder)
        face.within(furnish)
        return face

    def _post(self, message: str, headers: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        given = json.loads(message)
        routing = (
            {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": given["params"].get("name", "")}
            if headers is None
            else headers
        )
        accept = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        response = self._world.http.post("/mcp", content=message.encode(), headers={**accept, **routing})
        text = response.text
        if response.headers["content-type"].startswith("text/event-stream"):
            text = next(line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {"))
        body: Mapping[str, Any] = json.loads(text)
        return body

    def _raw_handshake(self) -> McpRaw:
        accept = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        http = self._world.http
        answer = http.post("/mcp", json=_initialize(), headers=accept).raise_for_status()
        session = {"Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": HANDSHAKE}
        http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=accept | session).raise_for_status()
        return McpRaw(partial(self._post, headers=session), self._world.home, {})

    def _raw_stdio(self) -> McpRaw:
        host: HostProcess = self._world.host
        command = [str(host.python), "-m", "aima_mcp.main", "mcp"]
        process = self._stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=host.cwd, env=environment(host.home.path)
            )
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        self._stack.callback(stdin.close)

        def exchange(line: str) -> Mapping[str, Any]:
            stdin.write(line + "\n")
            stdin.flush()
            reply: Mapping[str, Any] = json.loads(stdout.readline())
            return reply

        assert "result" in exchange(json.dumps(_initialize()))
        stdin.write(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}) + "\n")
        return McpRaw(exchange, self._world.home, {})


def _initialize() -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT},
    }


@pytest.fixture(scope="session")
def faces(world: World, portal: BlockingPortal, config: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    """Every way in, by name."""
    opened = Faces(world, portal, tmp_path_factory.mktemp("embedded") / "home", config)
    try:
        yield opened
    finally:
        opened.close()
