"""Whether an engine answers: a token, not a port."""

from __future__ import annotations

from typing import Any

from aima_lib.errors import Unavailable
from aima_lib.infra.launch import Launch
from aima_lib.services.wire import Address, Wire

PROBE_SECONDS = 5.0
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
    else:
        await wire.post(address, "/v1/embeddings", {"model": alias, "input": "a"}, timeout=TOKEN_SECONDS)


async def is_ours(wire: Wire, address: Address, alias: str) -> None:
    """Return when the key is accepted and the model is called `alias`. Costs the engine nothing.

    Raises:
        Unavailable: it is not.
    """
    status, answer = await wire.get(address, "/v1/models", timeout=PROBE_SECONDS)
    if status != 200:
        raise Unavailable(f"{address.name} answered {status}")
    served = [row.get("id") for row in answer.get("data", [])]
    if alias not in served:
        raise Unavailable(f"{address.base_url} serves {', '.join(map(str, served)) or 'nothing'}, not {alias}")
