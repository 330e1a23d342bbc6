"""W3C trace context: what is taken for one, and that it goes from a caller through every face to the engine and into the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from aima_lib.gateway import Gateway
from aima_lib.infra import trace
from aima_lib.launchers.process import log_of
from tests.mcp_world import World, opened
from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess, environment, until

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
STATE, BAGGAGE = "vendor=a b,t61@x=00f0", "tenant=a%20b;secret,user = 7"


def parent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"traceparent": parent(1)}, {"traceparent": parent(1)}),
        ({"traceparent": parent(1), "tracestate": STATE, "baggage": BAGGAGE}, {"traceparent": parent(1), "tracestate": STATE, "baggage": BAGGAGE}),
        ({"tracestate": STATE, "baggage": BAGGAGE}, {"baggage": BAGGAGE}),
        ({"traceparent": parent(0)}, {}),
        ({"traceparent": parent(1).upper().replace("1", "A")}, {}),
        ({"traceparent": parent(1) + "\n"}, {}),
        ({"traceparent": parent(1) + "-more"}, {}),
        ({"traceparent": "ff" + parent(1)[2:]}, {}),
        ({"traceparent": "01" + parent(1)[2:]}, {}),
        ({"traceparent": f"00-{1:032x}-{0:016x}-01"}, {}),
        ({"traceparent": 7, "baggage": ["a=b"]}, {}),
        ({"traceparent": parent(1), "tracestate": "a=b\r\nx: y"}, {"traceparent": parent(1)}),
        ({"traceparent": parent(1), "tracestate": "=b"}, {"traceparent": parent(1)}),
        ({"traceparent": parent(1), "tracestate": "a=" + "b" * 600}, {"traceparent": parent(1)}),
        ({"baggage": "a=b\u202e"}, {}),
        ({"baggage": "a=" + "b" * 9_000}, {}),
        ({}, {}),
    ],
    ids=range(17),
)  # fmt: skip
def test_only_what_has_the_standards_form_is_carried(given: dict[str, Any], taken: dict[str, str]) -> None:
    assert trace.read(given) == taken
    with trace.carried(trace.read(given)):
        assert trace.headers() == taken
        assert trace.trace_id() == (f"{1:032x}" if "traceparent" in taken else None)
    assert trace.headers() == {} and trace.words() == ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host whose one service runs an engine that tells what it was sent."""
    folder = tmp_path_factory.mktemp("trace")
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "echo_engine.py"}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    host = HostProcess(Path(sys.executable), folder / "home", ROOT, config=f'[engines]\nllama_server = "{program}"\n').start()
    with host.client() as client:
        made = client.post("/units/model/import", json={"path": str(write_tiny_gguf(folder / "tiny.gguf")), "name": "tiny"})
        assert made.is_success, made.text
        arguments = {"model_id": "tiny", "name": "echo", "engine": "llama-server"}
        made = client.post("/units/service/create", json=arguments, headers={"traceparent": parent(1), "tracestate": "bad"})
        assert made.is_success, made.text
        until(lambda: client.post("/units/service/get", json={"service_id": "echo"}).json()["service"]["status"] == "running", 60, "it")
    yield host
    host.stop()


def seen(host: HostProcess, said: str) -> list[dict[str, str]]:
    """The trace contexts that came to the engine with these words."""
    found = []
    for log in (host.home.path / "logs").glob("llama-server-*.log"):
        assert log == log_of(host.home.path, log.stem)
        rows = [json.loads(line.partition("SEEN ")[2]) for line in log.read_text(encoding="utf-8").splitlines() if "SEEN " in line]
        found += [{key: value for key, value in row.items() if key != "said"} for row in rows if row["said"] == said]
    return found


CONTEXTS = [{"traceparent": parent(2), "tracestate": STATE, "baggage": BAGGAGE}, {"traceparent": "00-nonsense"}]


def chat(words: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": words}]}


@pytest.mark.parametrize("path", ["/units/inference/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("context", CONTEXTS, ids=["sound", "unsound"])
def test_from_http_headers_to_the_engine(served: HostProcess, path: str, context: dict[str, str]) -> None:
    words = f"over {path} {context['traceparent']}"
    with served.client() as client:
        answer = client.post(path, json=chat(words), headers=context)
    assert answer.is_success, answer.text
    assert until(lambda: seen(served, words), 10, "the engine's log") == [trace.read(context)]


@pytest.mark.anyio
@pytest.mark.parametrize("context", CONTEXTS, ids=["sound", "unsound"])
@pytest.mark.parametrize("place", ["stdio-legacy", "stdio-auto", "http-legacy", "http-auto"])
async def test_from_mcps_meta_to_the_engine(served: HostProcess, place: str, context: dict[str, str]) -> None:
    transport, mode = place.split("-")
    words = f"over {place} {context['traceparent']}"
    async with httpx2.AsyncClient(headers=served.headers, trust_env=False) as http:
        way: AbstractAsyncContextManager[Any]
        if transport == "stdio":
            around = environment(served.home.path) | {"PYTHONPATH": str(ROOT)}
            way = stdio_client(StdioServerParameters(command=sys.executable, args=["-m", "aima_mcp.main", "mcp"], env=around))
        else:
            way = streamable_http_client(f"{served.url}/mcp", http_client=http)
        async with Client(way, mode=mode) as client:
            answer = await client.call_tool("inference_chat", chat(words), meta=context)  # type: ignore[arg-type]
            bare = await client.call_tool("inference_chat", chat(f"{words} bare"))
    assert not answer.is_error and not bare.is_error, answer
    assert until(lambda: seen(served, words), 10, "the engine's log") == [trace.read(context)]
    assert until(lambda: seen(served, f"{words} bare"), 10, "the engine's log") == [{}], "one request's trace is not the next one's"


def test_a_run_tells_its_trace_and_what_it_starts_belongs_to_it(served: HostProcess) -> None:
    with served.client() as client:
        runs = client.post("/units/run/list", json={"unit": "service.create"}).json()["runs"]
        plain = client.post("/units/run/list", json={"unit": "model.import"}).json()["runs"]
    assert [run["trace_id"] for run in runs] == [f"{1:032x}"] and [run["trace_id"] for run in plain] == [None]
    assert {"traceparent": parent(1)} in seen(served, "a"), "the engine's first token was asked for by that run"


@pytest.mark.anyio
async def test_the_log_of_a_failure_names_the_trace(home: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(home, tmp_path) as world, Client(world.face.server, mode="auto") as client:
        assert isinstance(world, World) and isinstance(world.gateway, Gateway)
        await client.call_tool("thing_crash", {}, meta={"traceparent": parent(3)})  # type: ignore[typeddict-unknown-key]
    assert f"thing.crash failed (trace {3:032x})" in caplog.text
