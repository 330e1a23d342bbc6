"""A host that runs pipelines made of toys: `python flow_host.py HOME FOLDER`, with AIMA_TOYS naming where the toys write.

FOLDER holds jobs.json, a list of {document, key, cancel}; each is created and run under its key, so that whoever comes after a kill goes on,
and cancelled after so many seconds where `cancel` says so.
It says "up" when it hosts, and in the end a JSON object of key → run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

import anyio

from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.infra.progress import silent
from aima_lib.runtime import host
from tests.served import registry
from tests.toys import HANDLERS, TOYS


async def main(home: Home, folder: Path) -> None:
    known, _ = registry(folder, TOYS, HANDLERS)
    jobs: list[dict[str, Any]] = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    ended: dict[str, Any] = {}
    async with host(home, registry=known) as gateway, anyio.create_task_group() as tasks:
        print("up", flush=True)
        for job in jobs:
            tasks.start_soon(carry_out, gateway, job, ended)
    print(json.dumps(ended), flush=True)


async def carry_out(gateway: Gateway, job: dict[str, Any], ended: dict[str, Any]) -> None:
    name, key = job["document"]["name"], job["key"]
    await gateway.call("pipeline.create", job["document"])
    run = await gateway.start("pipeline.run", {"pipeline_id": name}, key=key)
    if job.get("cancel") is not None and not run.get("cancel_requested_at"):  # once is enough, whatever happens to the host then
        await anyio.sleep(job["cancel"])
        await gateway.call("pipeline.cancel", {"run_id": run["id"]})
    ended[key] = await gateway.runs.follow(run["id"], silent)


if __name__ == "__main__":
    place = Home(sys.argv[1])
    place.make()
    anyio.run(main, place, Path(sys.argv[2]))
