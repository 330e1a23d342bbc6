"""A process that hosts a home and serves its model in a container: `python host_process.py HOME`. Says the container's id once it answers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

import anyio

from aima_lib import runtime
from aima_lib.infra.home import Home
from tests.docker.test_engine import SERVE
from tests.workshop import agreed


async def main() -> None:
    async with runtime.host(Home(sys.argv[1])) as gateway:
        await agreed(gateway, "model.import", {"path": sys.argv[2], "name": "tiny", "mode": "copy"})
        await agreed(gateway, "service.create", {"model_id": "tiny", **SERVE})
        [instance] = gateway.services.store.find("instance")
        print(instance["container_id"], flush=True)
        await anyio.sleep(600)


anyio.run(main)
