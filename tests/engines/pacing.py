"""A host with engines that take their time, and callers of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from aima_lib import runtime
from aima_lib.door import Caller
from aima_lib.errors import AimaError
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.workshop import agreed
from tests.world import ROOTS

CONFIG = """
[engines]
grace_seconds = 1
start_timeout_seconds = 30
probe_seconds = 0.1
probe_timeout_seconds = 0.5
hung_seconds = {hung}
restart_limit = 3
llama_server = "{server}"
{engines}
[inference]
residence_seconds = 0.5
{inference}
"""


def say(**how: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": json.dumps(how)}]


def guest(name: str) -> Caller:
    return Caller(name, frozenset({"inference"}), None)


def write(home: Home, folder: Path, engines: str = "", inference: str = "", hung: float = 2) -> None:
    """A configuration whose llama-server takes its time. The texts are more of it."""
    script = folder / "llama-server"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parents[1] / "paced_engine.py"} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    text = CONFIG.format(server=script, engines=engines, inference=inference, hung=hung) + ROOTS
    (home.path / "config.toml").write_text(text, encoding="utf-8")


@asynccontextmanager
async def paced(home: Home, fixtures: Path, folder: Path, engines: str = "", inference: str = "", hung: float = 2) -> AsyncIterator[Hosted]:
    """A hosted home, so configured; its services are deleted with it."""
    write(home, folder, engines, inference, hung)
    async with runtime.host(home) as gateway:
        try:
            yield Hosted(gateway, fixtures)
        finally:
            for service in (await gateway.call("service.list"))["services"]:
                await agreed(gateway, "service.delete", {"service_id": service["id"]})


async def serve(hosted: Hosted, name: str = "tiny", parallel: int = 4, **more: Any) -> None:
    await hosted.tiny(name)
    options = {"parallel": parallel, "context_length": 256}
    await hosted.call("service.create", model_id=name, engine="llama-server", options=options, **more)


@dataclass
class Asked:
    """What came of a request."""

    heard: int = 0
    error: AimaError | None = None
    seconds: float = 0.0


async def ask(hosted: Hosted, caller: Caller | None = None, model: str = "tiny", **how: Any) -> Asked:
    asked, began = Asked(), time.monotonic()

    async def send(item: Mapping[str, Any]) -> None:
        asked.heard += bool(item["delta"])

    try:
        arguments = {"model": model, "messages": say(**how)}
        await hosted.gateway.call("inference.chat", arguments, send=send, **({"caller": caller} if caller else {}))
    except AimaError as error:
        asked.error = error
    asked.seconds = time.monotonic() - began
    return asked


async def pids(hosted: Hosted) -> dict[str, int]:
    status = await hosted.call("service.status", service_id="tiny")
    return {each["id"]: each["pid"] for each in status["instances"] if each["pid"]}


async def crowd(hosted: Hosted, clients: int, each: int, results: list[Asked], **how: Any) -> None:
    """Clients that ask one request after the other."""

    async def client() -> None:
        for _ in range(each):
            results.append(await ask(hosted, **how))

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client)


@asynccontextmanager
async def asking(hosted: Hosted, clients: int, **how: Any) -> AsyncIterator[list[Asked]]:
    """What comes of the requests of clients that ask one after the other as long as the block lasts."""
    results, is_over = list[Asked](), False

    async def client() -> None:
        while not is_over:
            results.append(await ask(hosted, **how))

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(client)
        try:
            await hosted.until(lambda: len(results) > clients)
            yield results
        finally:
            is_over = True
