"""What the shell offers after Tab: ids, asked of the host if one runs, and quickly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from aima_lib.errors import AimaError

SECONDS = 1.0
# An instance is listed with its engine.
LISTED_IN = {"instance": "engine"}
Completing = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completing(key: str) -> Completing:
    """What a command of its own offers for an argument that means the same as a unit's `key`."""
    return lambda ctx, _, incomplete: offered(values_for(key, "", ctx.find_root().params.get("home")), incomplete)


def offered(values: Iterable[Any], incomplete: str) -> list[CompletionItem]:
    """Those that begin with what was typed."""
    return [CompletionItem(str(value)) for value in values if str(value).startswith(incomplete)]


def values_for(key: str, domain: str, home: str | None) -> list[str]:
    """What fits an argument called `key` of a unit of `domain`: model_id → ids of model.list. Nothing when no host answers at once."""
    try:
        return list(_values(key, domain, home))
    except AimaError:
        return []


def _values(key: str, domain: str, home: str | None) -> Iterator[str]:
    from aima_lib.registry import definitions

    if key == "unit" or (key, domain) == ("name", "unit"):
        yield from (unit["name"] for unit in definitions() if unit["kind"] in ("command", "query"))
    elif key == "types":
        yield from (unit["name"] for unit in definitions() if unit["kind"] == "event")
    elif key == "name":
        yield from _named(domain, home)
    elif key == "model":  # by its id or by its service's
        yield from (str(item["id"]) for item in _listed("inference.models", home))
    elif key.endswith("_id"):
        yield from _ids(key.removesuffix("_id"), home)


def _named(domain: str, home: str | None) -> Iterator[str]:
    """Names of what has no other id, such as engines; the name of a model or a key is one's own to choose."""
    yield from (str(item["name"]) for item in _listed(f"{domain}.list", home) if "id" not in item)


def _ids(noun: str, home: str | None) -> Iterator[str]:
    domain = LISTED_IN.get(noun, noun)
    items = _listed(f"{domain}.list", home) or _listed(f"{domain}.info", home)
    for item in items:
        for thing in item.get("instances", []) if noun != domain else [item]:
            if "id" in thing:
                yield str(thing["id"])


def _listed(name: str, home: str | None) -> Sequence[Mapping[str, Any]]:
    """What a unit lists, if there is such a unit, and a host."""
    from aima_lib.infra.home import Home
    from aima_lib.registry import definitions
    from aima_mcp.loopback import ask

    place = Home(home)
    host = None if place.remote()[0] else place.host()  # a host elsewhere is too far for a Tab
    listing = next((unit for unit in definitions(domain=name.partition(".")[0]) if unit["name"] == name), None)
    if host is None or listing is None:
        return []
    found: Sequence[Mapping[str, Any]] = ask(place, host, "POST", f"/units/{name.replace('.', '/')}", {}, seconds=SECONDS).get(
        listing["primary"], []
    )
    return found
