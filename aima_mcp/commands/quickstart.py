"""`aima quickstart`: from nothing to an answer. Made of unit calls alone; what it does, an agent can do with the same calls."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from aima_lib.errors import AimaError, Cancelled, FailedPrecondition, ResourceExhausted
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data

if TYPE_CHECKING:
    from aima_lib.door import Door
    from aima_lib.infra.home import Home

QUESTION = "What is the capital of France? Answer in one short sentence."
ANSWER_TOKENS = 64
# Quick is a download of minutes. Bigger ones are a matter of asking for them by name.
QUICK_BYTES = 6_000_000_000
INSTALL = "pip install 'aima[llamacpp]'"
Fields = Mapping[str, Any]


@click.command("quickstart")
@click.option("--recipe", "name", metavar="NAME", help="This recipe rather than the one that suits the machine; see --list.")
@click.option("--list", "listing", is_flag=True, help="Show the recipes and do nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before the download.")
@formed
@click.pass_context
def command(ctx: click.Context, name: str | None, listing: bool, yes: bool, form: Form) -> None:
    """Find a model that fits this machine, fetch and verify it, serve it, and ask it something. Again, it only asks."""
    from aima_lib.catalog.shelf import builtins
    from aima_mcp.faces.cli.doorway import through

    if listing:
        _list([*builtins().values()], form)
        return
    home = home_of(ctx)
    if name is not None and name not in builtins():
        through(home, partial(_known, name), needs_host=False)
    sure = yes or form != "table" or not (sys.stdin.isatty() and sys.stderr.isatty())
    try:
        report = through(home, Quickstart(home, name, sure, form != "table").run, needs_host=True, plain=True)
    except KeyboardInterrupt:
        click.echo("\nthe host goes on with what was begun (aima run list); aima quickstart again takes it up from there", err=True)
        raise
    if form != "table":
        show_data(report, form)
    else:
        _how_to_go_on(home, report)


class Quickstart:
    """One run of it: catalog.match, catalog.apply_recipe, inference.chat."""

    def __init__(self, home: Home, wanted: str | None, sure: bool, quiet: bool) -> None:
        self._home, self._wanted, self._sure, self._quiet = home, wanted, sure, quiet

    async def run(self, door: Door) -> Fields:
        """Choose, apply, ask; what is there already is taken as it is."""
        recipe_id, service = await self._served(door)
        if recipe_id is None:
            recipe_id = await self._choose(door)
        if service is None:
            service = await self._apply(door, recipe_id)
        answer = await self._ask(door, service["id"])
        elsewhere, _ = self._home.remote()
        host = self._home.host()
        url = elsewhere or (host.url if host else None)
        return {
            "recipe": recipe_id,
            "model_id": service["model_id"],
            "service_id": service["id"],
            "answer": answer["content"],
            "openai_base_url": f"{url}/v1" if url else None,
        }

    async def _served(self, door: Door) -> tuple[str | None, Fields | None]:
        """A recipe that is served already, and its service."""
        known = [self._wanted] if self._wanted else [row["id"] for row in (await door.call("catalog.list", {"type": "llm"}))["recipes"]]
        for service in (await door.call("service.list", {"status": "running"}))["services"]:
            if service["model_id"] in known:
                self._say(f"{service['model_id']} is served already")
                return service["model_id"], service
        return self._wanted, None

    async def _choose(self, door: Door) -> str:
        """The best for this machine among those that are a download of minutes."""
        found = await door.call("catalog.match", {"type": "llm", "max_bytes": QUICK_BYTES, "limit": 1, "refused": True})
        if not found["recipes"]:
            raise _nothing(found["refused"])
        [match] = found["recipes"]
        self._say("\n  ".join([f"{match['recipe']['id']} fits this machine:", *match["reasons"]]))
        return str(match["recipe"]["id"])

    async def _apply(self, door: Door, recipe_id: str) -> Fields:
        from aima_lib.wording import size

        recipe = (await door.call("catalog.get", {"recipe_id": recipe_id}))["recipe"]
        await self._refuse_without_engine(door, recipe)
        if (await door.call("catalog.check_status", {"recipe_id": recipe_id}))["model"]["present"]:
            self._say(f"{recipe_id} is here already")
        else:
            weights, memory = size(recipe["size_bytes"]), size(recipe["memory_bytes"])
            self._say(f"{recipe['title']}: {weights} to download, about {memory} of memory while it runs")
            if not self._sure and not click.confirm("Fetch and serve it?", default=True, err=True):
                raise Cancelled("nothing was fetched", hint="aima quickstart --list shows other recipes")
        applied = await self._watched(partial(door.call, "catalog.apply_recipe", {"recipe_id": recipe_id}))
        for note in applied["notes"]:
            self._say(note)
        service: Fields = (await door.call("service.get", {"service_id": applied["service_id"]}))["service"]
        placement = service["placement"] or {}
        self._say(f"{service['id']} is served by {service['engine']} on {placement.get('device') or 'an unknown device'}")
        if placement.get("fallback"):
            self._say(placement["fallback"])
        return service

    async def _refuse_without_engine(self, door: Door, recipe: Fields) -> None:
        engines = {engine["name"]: engine for engine in (await door.call("engine.list"))["engines"]}
        fitting = [engines[name] for name in recipe["engines"] if name in engines]
        if not any(engine["installed"] for engine in fitting):
            reasons = "; ".join(f"{engine['name']}: {engine['reason']}" for engine in fitting)
            hint = f"{INSTALL}, then aima quickstart again"
            raise FailedPrecondition(f"no engine is installed that runs {recipe['id']} ({reasons})", hint=hint)

    async def _ask(self, door: Door, service_id: str) -> Fields:
        from aima_mcp.commands.turn import ask

        self._say(f"\n> {QUESTION}")
        options = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
        return await ask(door, service_id, [{"role": "user", "content": QUESTION}], options, quiet=self._quiet)

    async def _watched(self, call: Callable[..., Awaitable[Fields]]) -> Fields:
        """A durable call, with its progress."""
        from aima_mcp.faces.cli.call import Noted
        from aima_mcp.faces.cli.watching import Silence, seen_by, watcher

        seen = Noted(Silence() if self._quiet else watcher({"properties": {"phase": {}}}, False))
        with seen_by(seen.inner):
            return await call(send=seen.send)

    def _say(self, text: str) -> None:
        from aima_mcp.faces.cli.render import err

        if not self._quiet:
            err().print(text, soft_wrap=True)


async def _known(name: str, door: Door) -> Fields:
    """The recipe of that name. Raises NotFound naming the nearest."""
    return await door.call("catalog.get", {"recipe_id": name})


def _nothing(refused: Sequence[Fields]) -> AimaError:
    """Why not one recipe fits, smallest first."""
    if all(row["reason"].startswith("no engine") for row in refused):
        return FailedPrecondition("no engine is installed that runs a recipe", hint=f"{INSTALL}, then aima quickstart again")
    told = "; ".join(f"{row['recipe_id']}: {row['device_id']} {row['reason']}" for row in refused[:2])
    calls = [{"unit": "engine.list", "arguments": {"status": "running"}}]
    return ResourceExhausted(f"no recipe fits this machine now: {told}", hint="end what uses the memory, or stop an engine", next=calls)


def _list(known: Sequence[Fields], form: Form) -> None:
    from aima_mcp.faces.cli.render import out, table

    if form != "table":
        show_data({"recipes": list(known)}, form)
        return
    rows = [{**recipe, "sources": [source["source"] for source in recipe["sources"]]} for recipe in known]
    out().print(table(rows, ("name", "title", "size_bytes", "memory_bytes", "license", "sources")))


def _how_to_go_on(home: Home, report: Fields) -> None:
    import json

    from aima_mcp.commands.mcp import client_config
    from aima_mcp.faces.cli.render import err

    elsewhere, _ = home.remote()
    own = home.key() if err().is_terminal else "from `aima key show`"  # shown to a person, kept out of logs
    key = "from AIMA_KEY" if elsewhere else own
    lines = (
        "",
        "talk to it:         aima chat",
        f"OpenAI clients:     base URL {report['openai_base_url']}, model {report['service_id']}, key {key}",
        "Claude Desktop:     put this into its configuration",
        json.dumps(client_config(str(home.path)), indent=2),
        "end everything:     aima stop",
    )
    err().print("\n".join(lines), soft_wrap=True)
