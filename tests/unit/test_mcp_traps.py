"""Traps of the MCP SDK: what a server built on it does wrong unless it knows. Each was met; each has a test of ours.

 1 a 2026-07-28 call over HTTP first runs the whole tools/list    test_mcp: test_no_call_over_http_lists_the_tools_first
 2 an uncaught exception's text reaches handshake clients         test_mcp: test_text_from_inside_never_reaches_a_client
 3 a handshake over HTTP says that no list ever changes           test_mcp: test_the_server_says_who_it_is_and_what_is_true_of_it
 4 nobody broadcasts to handshake sessions                        test_mcp: test_a_handshake_session_hears_of_what_it_watches
 5 Host is not checked on 0.0.0.0, Origin by its beginning only   test_mcp_wire, test_http: test_only_this_hosts_names_are_answered
 6 json_response and stateless lose what is sent on the way       here
 7 Mcp-Name is compared with the blanks around it                 here
 8 a mounted application's lifespan does not run                  here: without it, nothing at /mcp answers
 9 a token for somebody else is taken                             test_oauth: test_every_other_token_is_refused
10 media types, doubled keys, lone surrogates, depth              test_mcp_wire: test_no_line_is_left_without_a_reply and others
11 the collector looks at everything again and again              here
12 there is no runtime for tasks                                  test_mcp_tasks
"""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.mcp_world import ERAS, HANDLERS, WORLD, until
from tests.served import Served
from tests.tiny import write_tiny_gguf

__all__ = ["HANDLERS", "WORLD"]
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@asynccontextmanager
async def client_of(served: Served, mode: str, **more: Any) -> AsyncIterator[Client]:
    """The SDK's client, over HTTP to the whole host, with the owner's key."""
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {served.home.key()}"}, trust_env=False, timeout=30)
    async with http, Client(streamable_http_client(f"{served.url}/mcp/full", http_client=http), mode=mode, **more) as client:
        yield client


@pytest.mark.parametrize("mode", ERAS)
async def test_what_is_sent_on_the_way_arrives_over_http(served: Served, mode: str) -> None:
    """Trap 6: progress before the result, a question to the person, and a cancellation that ends the work."""
    weights = write_tiny_gguf(served.home.path / "tiny.gguf")
    await served.gateway.call("model.create", {"name": "doomed", "type": "llm", "path": str(weights)})
    heard, asked = list[str | None](), list[str]()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async def agree(context: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult.model_validate({"action": "accept", "content": {}})

    async with client_of(served, mode, elicitation_callback=agree) as client:
        await client.call_tool("thing_say", {}, progress_callback=hear)
        assert heard == ["one ", "two ", "three"]
        assert not (await client.call_tool("model_delete", {"model_id": "doomed"})).is_error and len(asked) == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "thing_hang", {})
            await until(served.inside.under_way.is_set)
            tasks.cancel_scope.cancel()
        await until(lambda: served.inside.log == ["cancelled"])


async def test_blanks_around_a_header_are_no_part_of_it(served: Served) -> None:
    """Traps 7 and 8."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "thing_say", "arguments": {}, "_meta": META}}
    body = json.dumps(message).encode()

    async def post(name: str) -> bytes:
        head = f"POST /mcp/full HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.home.key()}\r\nConnection: close\r\n"
        head += "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n"
        head += f"Mcp-Method: \t tools/call \r\nMcp-Name:{name}\r\nContent-Length: {len(body)}\r\n\r\n"
        return await served.raw(head.encode() + body)

    answer = await post(" \t thing_say  ")
    assert answer.startswith(b"HTTP/1.1 200") and b'"text":"one two three"' in answer, answer
    assert (await post(" thing_hang")).startswith(b"HTTP/1.1 400")


async def test_what_lives_to_the_end_is_looked_at_once(served: Served) -> None:
    """Trap 11."""
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()
