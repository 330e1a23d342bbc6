"""Whether an engine answers: a token, not a port."""

from __future__ import annotations

import json
from typing import Any

from aima_lib.errors import AimaError, Unavailable
from aima_lib.infra.launch import Launch
from aima_lib.services.wire import Address, Wire

PROBE_SECONDS = 5.0
TRY_SECONDS = 30.0
TOKEN_SECONDS = 120.0


async def says_a_token(wire: Wire, address: Address, launch: Launch) -> None:
    """Return when this is our engine, with our model, and it computes.

    The key was made for this start alone: what refuses a stranger and accepts it is the process we started, whoever else may
    listen near by.

    Raises:
        AimaError: it is not, or not yet.
    """
    alias, tasks = launch.alias, launch.tasks
    await is_ours(wire, address, alias)
    status, _ = await wire.get(address, "/v1/models", timeout=PROBE_SECONDS, key=False)
    if status != 401 and "chat" in tasks:
        status, _ = await wire.get(address, "/props", timeout=PROBE_SECONDS, key=False)
    if status != 401:
        raise Unavailable(f"what listens at {address.base_url} asks for no key: it is not the engine that was started")
    if launch.probe:
        await wire.post(address, launch.probe, {"model": alias}, timeout=TOKEN_SECONDS)
    elif "chat" in tasks:
        body: dict[str, Any] = {"model": alias, "prompt": "a", "max_tokens": 1, "temperature": 0}
        await wire.post(address, "/v1/completions", body, timeout=TOKEN_SECONDS)
    elif "rerank" in tasks:
        await wire.post(address, "/v1/rerank", {"model": alias, "query": "a", "documents": ["a"]}, timeout=TOKEN_SECONDS)
    else:
        await wire.post(address, "/v1/embeddings", {"model": alias, "input": "a"}, timeout=TOKEN_SECONDS)


async def answers_a_chat(wire: Wire, address: Address, alias: str) -> None:
    """Return when a short chat is answered by a message. Raises AimaError: it is not."""
    asked = {"model": alias, "messages": [{"role": "user", "content": "Say ready."}], "temperature": 0, "max_tokens": 16}
    answer = await wire.post(address, "/v1/chat/completions", asked, timeout=TOKEN_SECONDS)
    try:
        message = answer["choices"][0]["message"]
        said = [message.get(key) for key in ("content", "reasoning_content", "tool_calls")]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unavailable("its answer to a chat is no message") from error
    if not any(isinstance(each, str | list) for each in said):
        raise Unavailable("its answer to a chat is a message without content")


async def is_ours(wire: Wire, address: Address, alias: str, timeout: float = PROBE_SECONDS) -> None:
    """Return when the key is accepted and the model is called `alias`. Costs the engine nothing.

    Raises:
        Unavailable: it is not.
    """
    status, answer = await wire.get(address, "/v1/models", timeout=timeout)
    if status != 200:
        raise Unavailable(f"{address.name} answered {status}")
    served = [row.get("id") for row in answer.get("data", [])]
    if alias not in served:
        raise Unavailable(f"{address.base_url} serves {', '.join(map(str, served)) or 'nothing'}, not {alias}")


async def tried(wire: Wire, address: Address, alias: str, what: str) -> bool | None:
    """Whether a chat of this model does it, seen by one short request: `json_schema` (its answer obeys one) or `tools` (it calls the one it
    must). None when it did not answer."""
    asked: dict[str, Any] = {"model": alias, "messages": [{"role": "user", "content": "go"}], "temperature": 0, "max_tokens": 48}
    if what == "json_schema":
        schema = {"type": "string", "enum": ["aima"]}
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "probe", "schema": schema}}
    else:
        function = {"name": "go", "description": "Go.", "parameters": {"type": "object", "properties": {}}}
        asked |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    try:
        message = (await wire.post(address, "/v1/chat/completions", asked, timeout=TRY_SECONDS))["choices"][0]["message"]
        if what == "tools":
            return any(call["function"]["name"] == "go" for call in message.get("tool_calls") or ())
        return bool(json.loads(message["content"]) == "aima")
    except Unavailable:
        return None
    except (AimaError, ValueError, KeyError, IndexError, TypeError):
        return False
