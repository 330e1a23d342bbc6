"""A unit through the gateway against its bare handler: `python tests/bench/gateway.py`. About 30 s."""

from __future__ import annotations

import logging
import tempfile
from functools import partial

import anyio
from measure import compare, say

from aima_lib.door import OWNER
from aima_lib.gateway import Context, Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host

SECONDS = 9.0
CALLS = [("system.info", {}), ("run.list", {}), ("unit.describe", {"name": "model.pull"})]


async def measure(gateway: Gateway) -> None:
    context = Context(gateway, OWNER)
    for name, arguments in CALLS:
        handler = gateway.registry[name].handler
        assert handler is not None
        ours, bare = await compare(partial(gateway.call, name, arguments), partial(handler, context, **arguments), SECONDS)
        say(f"gateway.call({name!r})", ours, bare, "bare coroutine")
        print(f"{'':<52} {(ours - bare) * 1e6:>10.1f} µs is what the gateway adds", flush=True)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with host(Home(folder)) as gateway:
            await measure(gateway)


if __name__ == "__main__":
    logging.disable()
    anyio.run(main)
