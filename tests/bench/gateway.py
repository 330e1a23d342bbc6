"""A call through the gateway against the bare coroutine behind it: `python tests/bench/gateway.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from aima_lib.door import OWNER
from aima_lib.gateway import Context
from aima_lib.infra.home import Home
from aima_lib.runtime import host

COUNT = 5_000


async def microseconds(call: Callable[[], Awaitable[Any]]) -> float:
    """The median of five rounds, a call."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(COUNT):
            await call()
        rounds.append((time.perf_counter() - began) / COUNT * 1e6)
    return sorted(rounds)[2]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with host(Home(folder)) as gateway:
            print("unit           bare µs   gateway µs   gateway/bare   added µs")
            for name, arguments in (("unit.describe", {"name": "model.pull"}), ("model.list", {}), ("run.list", {"limit": 10})):
                handler, context = gateway.registry[name].handler, Context(gateway, OWNER)
                assert handler is not None
                plain = await microseconds(lambda h=handler, c=context, a=arguments: h(c, **a))  # type: ignore[misc]
                whole = await microseconds(lambda n=name, a=arguments: gateway.call(n, a))  # type: ignore[misc]
                print(f"{name:13}  {plain:7.1f}   {whole:10.1f}   {whole / plain:12.2f}   {whole - plain:8.1f}")




if __name__ == "__main__":
    anyio.run(main)
