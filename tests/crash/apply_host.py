"""A host that applies one recipe: `python apply_host.py HOME RECIPE.json KEY`. Says each phase as it comes, and in the end the run as JSON.

Whoever comes after a kill goes on with the same run: the key is the same. At its end it tells too what there is, and ends its engines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

import anyio

from aima_lib.infra.home import Home
from aima_lib.runtime import host


async def main(home: Home, recipe: Mapping[str, Any], key: str) -> None:
    async with host(home) as gateway:
        await gateway.call("catalog.create_recipe", {"recipe": recipe})
        run = await gateway.start("catalog.apply_recipe", {"recipe_id": recipe["name"]}, key=key)

        async def say(item: Mapping[str, Any]) -> None:
            print(item["phase"], flush=True)

        run = await gateway.runs.follow(run["id"], say)
        await gateway.services.events.settled()
        events = gateway.services.events.page(0, 1000, ["catalog.recipe_applied"])
        told = {
            "run": run,
            "models": [each["id"] for each in (await gateway.call("model.list"))["models"]],
            "services": [each["id"] for each in (await gateway.call("service.list"))["services"]],
            "applied": sum(event["payload"]["run_id"] == run["id"] for event in events),
        }
        await gateway.call("engine.stop", {"name": "llamacpp", "force": True})
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    place = Home(sys.argv[1])
    place.make()
    anyio.run(main, place, json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), sys.argv[3])
