"""`aima quickstart`: from nothing to an answer. Made of unit calls alone; what it does, an agent can do with the same calls."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from aima_lib.errors import Cancelled, FailedPrecondition, NotFound, Unavailable
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data

if TYPE_CHECKING:
    from aima_lib.door import Door
    from aima_lib.infra.home import Home

QUESTION = "What is the capital of France? Answer in one short sentence."
ANSWER_TOKENS = 64
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
    from aima_lib.services import recipes
    from aima_mcp.faces.cli.doorway import through

    known = recipes.load()
    if listing:
        _list(known, form)
        return
    wanted = recipes.named(known, name) if name else None
    home = home_of(ctx)
    sure = yes or form != "table" or not (sys.stdin.isatty() and sys.stderr.isatty())
    try:
        report = through(home, Quickstart(home, known, wanted, sure, form != "table").run, needs_host=True, plain=True)
    except KeyboardInterrupt:
        click.echo("\nthe host goes on with what was begun (aima run list); aima quickstart again takes it up from there", err=True)
        raise
    if form != "table":
        show_data(report, form)
    else:
        _how_to_go_on(home, report)


class Quickstart:
    """One run of it."""

    def __init__(self, home: Home, known: Sequence[Fields], wanted: Fields | None, sure: bool, quiet: bool) -> None:
        self._home, self._known, self._wanted, self._sure, self._quiet = home, known, wanted, sure, quiet

    async def run(self, door: Door) -> Fields:
        """Choose, fetch, serve, ask; what is there already is taken as it is."""
        recipe, service = await self._served(door)
        if recipe is None:
            recipe = await self._choose(door)
        if service is None:
            await self._refuse_without_engine(door, recipe)
            await self._fetch(door, recipe)
            service = await self._serve(door, recipe)
        answer = await self._ask(door, service["id"])
        elsewhere, _ = self._home.remote()
        host = self._home.host()
        url = elsewhere or (host.url if host else None)
        return {
            "recipe": recipe["name"],
            "model_id": service["model_id"],
            "service_id": service["id"],
            "answer": answer["content"],
            "openai_base_url": f"{url}/v1" if url else None,
        }

    async def _served(self, door: Door) -> tuple[Fields | None, Fields | None]:
        """A recipe that is served already, and its service."""
        names = {recipe["name"]: recipe for recipe in ([self._wanted] if self._wanted else self._known)}
        for service in (await door.call("service.list", {"status": "running"}))["services"]:
            if service["model_id"] in names:
                self._say(f"{service['model_id']} is served already")
                return names[service["model_id"]], service
        return self._wanted, None

    async def _choose(self, door: Door) -> Fields:
        from aima_lib.services import recipes

        devices = (await door.call("device.detect"))["devices"]
        now = {row["device_id"]: row["now"] for row in (await door.call("device.metrics"))["devices"]}
        choice = recipes.choose(self._known, devices, {device: _free(sample) for device, sample in now.items()})
        self._say(f"{choice.reason}: {choice.recipe['name']}")
        return choice.recipe

    async def _refuse_without_engine(self, door: Door, recipe: Fields) -> None:
        engines = {engine["name"]: engine for engine in (await door.call("engine.list"))["engines"]}
        fitting = [engines[name] for name in recipe["engines"] if name in engines]
        if not any(engine["installed"] for engine in fitting):
            reasons = "; ".join(f"{engine['name']}: {engine['reason']}" for engine in fitting)
            hint = f"{INSTALL}, then aima quickstart again"
            raise FailedPrecondition(f"no engine is installed that runs {recipe['name']} ({reasons})", hint=hint)

    async def _fetch(self, door: Door, recipe: Fields) -> None:
        """The model, from the first source that can be reached."""
        from aima_lib.wording import size

        try:
            await door.call("model.get", {"model_id": recipe["name"]})
        except NotFound:
            pass
        else:
            self._say(f"{recipe['name']} is here already")
            return
        weights, memory = size(recipe["size_bytes"]), size(recipe["memory_bytes"])
        self._say(f"{recipe['title']}: {weights} to download, about {memory} of memory while it runs")
        if not self._sure and not click.confirm("Fetch and serve it?", default=True, err=True):
            raise Cancelled("nothing was fetched", hint="aima quickstart --list shows other recipes")
        *others, last = recipe["sources"]
        for source in others:
            try:
                await self._pull(door, recipe["name"], source)
                break
            except (Unavailable, NotFound) as error:
                self._say(f"{source['source']} cannot be had: {error}")
        else:
            await self._pull(door, recipe["name"], last)
        report = await self._watched(partial(door.call, "model.verify", {"model_id": recipe["name"]}))
        if not report["valid"]:
            raise FailedPrecondition(
                f"{recipe['name']} is damaged: {report['issues']}",
                next=[{"unit": "model.delete", "arguments": {"model_id": recipe["name"]}}],
            )

    async def _pull(self, door: Door, name: str, source: Fields) -> None:
        arguments = {key: value for key, value in source.items() if key != "evidence"}
        self._say(f"fetching {source['repo']} from {source['source']}")
        await self._watched(partial(door.call, "model.pull", arguments | {"name": name}))

    async def _serve(self, door: Door, recipe: Fields) -> Fields:
        service: Fields = (await self._watched(partial(door.call, "service.create", {"model_id": recipe["name"]})))["service"]
        placement = service["placement"] or {}
        self._say(f"{service['id']} is served by {service['engine']} on {placement.get('device') or 'an unknown device'}")
        if placement.get("fallback"):
            self._say(placement["fallback"])
        return service

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


def _free(sample: Fields) -> int | None:
    total, used = sample["memory_total_bytes"], sample["memory_used_bytes"]
    return None if total is None or used is None else total - used


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
