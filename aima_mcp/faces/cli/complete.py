"""What the shell offers after Tab: ids, asked of the host if one runs, and quickly or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aima_lib.errors import AimaError

SECONDS = 1.0
# An instance is listed with its engine; a model is called by its id or by its service's.
LISTED_IN = {"instance": "engine"}


def ids_for(key: str, home: str | None) -> list[str]:
    """Ids that fit an argument called `key`: model_id → ids of model.list. Nothing when no host answers at once."""
    noun = key if key == "model" else key.removesuffix("_id") if key.endswith("_id") else None
    try:
        return list(_ids(noun, home)) if noun else []
    except AimaError:
        return []


def _ids(noun: str, home: str | None) -> Iterator[str]:
    from aima_lib.infra.home import Home
    from aima_lib.registry import definitions
    from aima_mcp.loopback import ask

    domain = LISTED_IN.get(noun, noun)
    place = Home(home)
    host = None if place.remote()[0] else place.host()  # a host elsewhere is too far for a Tab
    listing = next((unit for unit in definitions(domain=domain) if unit["name"] in (f"{domain}.list", f"{domain}.info")), None)
    if host is None or listing is None:
        return
    found = ask(place, host, "POST", "/units/" + listing["name"].replace(".", "/"), {}, seconds=SECONDS)
    for item in _things(found.get(listing["primary"], []), noun != domain):
        yield str(item["id"])


def _things(items: Sequence[Mapping[str, Any]], inside: bool) -> Iterator[Mapping[str, Any]]:
    for item in items:
        for thing in item.get("instances", []) if inside else [item]:
            if "id" in thing:
                yield thing
