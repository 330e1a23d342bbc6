"""MCP over HTTP with a hundred tools: AIMA against the SDK's bare low-level server and against FastMCP, each in a process of its own.

    python tests/bench/mcp_http.py [python of an environment that has fastmcp]

Each client is a bare socket that knows the answer's length: what is timed is the server. Told are the median time of a call, and the
server's CPU a call, of which its rate under load is the inverse and which other work on the machine disturbs less. About two minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TOOLS, CALLS, ROUNDS = 100, 400, 5
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
FIELDS = {f"field_{n}": {"type": "string", "description": f"Field {n}."} for n in range(8)}
SCHEMA = {"type": "object", "additionalProperties": False, "properties": FIELDS}
ANSWER = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {"text": {"type": "string", "description": "t"}},
}
ARGUMENTS = dict.fromkeys(FIELDS, "x" * 10)
HANDLERS = "\n".join(
    f"@handles('thing.t{n}')\nasync def t{n}(ctx, {', '.join(f'{name}=None' for name in FIELDS)}):\n    return {{'text': 'done'}}\n"
    for n in range(TOOLS)
)


def serve_ours(port: int) -> None:
    """A host with a hundred units beside its own; /mcp/things lists just those."""
    sys.path.insert(0, str(ROOT))
    from aima_lib import units
    from aima_lib.infra.home import Home
    from aima_lib.registry import Registry
    from aima_lib.runtime import host
    from aima_mcp import server
    from tests.workshop import unit, write_handlers, write_schemas

    async def main() -> None:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            toys = [unit("query", f"thing.t{n}", inputSchema=SCHEMA, outputSchema=ANSWER, primary="text") for n in range(TOOLS)]
            own = Registry.load(write_handlers(folder, "bench_handlers", HANDLERS), write_schemas(folder / "schemas", *toys))
            home = Home(folder / "home")
            home.make()
            (home.path / "config.toml").write_text('[mcp.profiles]\nthings = ["thing.*"]\n', encoding="utf-8")
            (home.path / "key").write_text(os.environ["BENCH_KEY"], encoding="utf-8")
            with server.listen("127.0.0.1", port) as listener:
                async with host(home, registry=Registry(dict(Registry.load(units)) | dict(own))) as gateway:
                    await server._serve(gateway, "127.0.0.1", listener, None)

    asyncio.run(main())


def serve_bare(port: int) -> None:
    """The SDK's low-level server and nothing else."""
    import uvicorn
    from mcp import types
    from mcp.server.lowlevel import Server

    tools = [types.Tool(name=f"thing_t{n}", description=f"The query thing.t{n} of a test.", input_schema=SCHEMA) for n in range(TOOLS)]

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(ctx: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text="done")], structured_content={"text": "done"})

    server = Server("bare", on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=lambda name: None)
    uvicorn.run(server.streamable_http_app(streamable_http_path="/mcp/things"), port=port, log_level="error", http="h11", loop="asyncio")


def serve_fastmcp(port: int) -> None:
    """FastMCP, with functions of the same eight fields."""
    from fastmcp import FastMCP

    server = FastMCP("fast")
    names = ", ".join(f"{name}: str = ''" for name in FIELDS)
    for n in range(TOOLS):
        scope: dict[str, Any] = {}
        exec(f"def thing_t{n}({names}) -> dict[str, str]:\n    '''A tool.'''\n    return {{'text': 'done'}}", scope)
        server.tool(scope[f"thing_t{n}"])
    server.run(transport="http", port=port, path="/mcp/things", show_banner=False, log_level="ERROR")


class Asker:
    """One connection that posts one message again and again."""

    def __init__(self, port: int, key: str) -> None:
        self._port, self._key = port, key
        self._session: dict[str, str] = {}
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, method: str, params: dict[str, Any], *, modern: bool) -> bytes:
        headers = {"Host": f"127.0.0.1:{self._port}", "Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        headers |= {"Authorization": f"Bearer {self._key}"} | self._session
        if modern:
            headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": method} | ({"Mcp-Name": params["name"]} if "name" in params else {})
            params = params | {"_meta": META}
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if not method.startswith("notifications/"):
            message["id"] = 1
        body = json.dumps(message).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"POST /mcp/things HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return self._answer()

    def shake_hands(self) -> None:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        head = self.post("initialize", hello, modern=False).partition(b"\r\n\r\n")[0].decode()
        session = next(line.partition(": ")[2] for line in head.splitlines() if line.lower().startswith("mcp-session-id"))
        self._session = {"Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-11-25"}
        self.post("notifications/initialized", {}, modern=False)

    def _answer(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._socket.recv(65536)
        else:
            length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            while len(body) < length:
                body += self._socket.recv(65536)
        assert head.split(b" ", 2)[1] in (b"200", b"202"), head + body
        return head + b"\r\n\r\n" + body


def median(asker: Asker, method: str, params: dict[str, Any], *, modern: bool, calls: int, pid: int) -> tuple[float, float]:
    """Microseconds: the median time of a call, and the server's CPU for one."""
    taken = []
    before = cpu(pid)
    for _ in range(calls):
        began = time.perf_counter()
        answer = asker.post(method, params, modern=modern)
        taken.append(time.perf_counter() - began)
    spent = cpu(pid) - before
    assert b'"isError":true' not in answer.replace(b" ", b""), answer
    return statistics.median(taken) * 1e6, spent / calls * 1e6


def cpu(pid: int) -> float:
    """Seconds that all of a process's threads have computed."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def main(fast: str | None) -> None:
    sys.path.insert(0, str(ROOT))
    from aima_lib.infra.keys import mint

    pythons = {"ours": sys.executable, "bare": sys.executable} | ({"fastmcp": fast} if fast else {})
    key = mint()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_KEY": key}
    ports, processes = {}, {}
    for name, python in pythons.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
        processes[name] = subprocess.Popen([python, __file__, name, str(ports[name])], env=environment)
    try:
        for port in ports.values():
            wait(port)
        call = {"name": "thing_t50", "arguments": ARGUMENTS}
        for era, modern in (("2026-07-28", True), ("2025-11-25", False)):
            askers = {name: Asker(port, key) for name, port in ports.items()}
            for name in list(askers):
                try:
                    if not modern:
                        askers[name].shake_hands()
                    askers[name].post("tools/call", call, modern=modern)
                except AssertionError:
                    print(f"{name} does not speak {era}")
                    del askers[name]
            for method, params, calls in (("tools/call", call, CALLS), ("tools/list", {}, CALLS // 8)):
                found: dict[str, list[tuple[float, float]]] = {name: [] for name in askers}
                for _ in range(ROUNDS):
                    for name, asker in askers.items():
                        found[name].append(median(asker, method, params, modern=modern, calls=calls, pid=processes[name].pid))
                for place, what in enumerate(("time", "CPU")):
                    took = {name: statistics.median(one[place] for one in measured) for name, measured in found.items()}
                    said = ", ".join(f"{name} {value:.0f} µs" for name, value in took.items())
                    ratios = ", ".join(f"{took[name] / took['ours']:.2f} × the rate of {name}" for name in took if name != "ours")
                    print(f"{era} {method:<11} {what:<4} {said}; ours has {ratios}", flush=True)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()


def wait(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("a server did not start")


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["bare"], ["fastmcp"]):
        {"ours": serve_ours, "bare": serve_bare, "fastmcp": serve_fastmcp}[sys.argv[1]](int(sys.argv[2]))
    else:
        main(sys.argv[1] if sys.argv[1:] else None)
