"""Handlers of catalog.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.catalog import applying, migration
from aima_lib.catalog.match import Matcher, shown
from aima_lib.catalog.recipe import Recipe, opened
from aima_lib.catalog.recipe import issues as wrong_with
from aima_lib.catalog.shelf import Shelf
from aima_lib.catalog.standing import standing
from aima_lib.errors import InvalidArgument
from aima_lib.flows.source import Issue, Places, in_order, plain, refusal
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]
Parts = Mapping[str, Any]


@handles("catalog.create_recipe")
async def create_recipe(ctx: Context, definition: str | None = None, recipe: Parts | None = None, variant: str | None = None) -> Result:
    read, notes = _read(definition, recipe, variant)
    shelf = Shelf(ctx.services.store)
    if await shelf.create(read, ctx.caller):
        told = {"recipe_id": read["name"], "type": read["type"], "by": ctx.caller.name}
        ctx.services.events.publish("catalog.recipe_created", told, subject=read["name"])
    return {"recipe": shelf.about(read["name"]), "notes": notes}


@handles("catalog.validate_recipe")
async def validate_recipe(
    ctx: Context,  # noqa: ARG001
    definition: str | None = None,
    recipe: Parts | None = None,
    variant: str | None = None,
) -> Result:
    notes: list[str] = []
    try:
        _, notes = _read(definition, recipe, variant)
        found: list[Any] = []
    except InvalidArgument as error:
        if "issues" not in error.details:
            raise
        found = error.details["issues"]
    return {"valid": not found, "issues": found, "notes": notes}


@handles("catalog.delete_recipe")
async def delete_recipe(ctx: Context, recipe_id: str) -> Result:
    await Shelf(ctx.services.store).delete(recipe_id)
    ctx.services.events.publish("catalog.recipe_deleted", {"recipe_id": recipe_id, "by": ctx.caller.name}, subject=recipe_id)
    return {"recipe_id": recipe_id}


@handles("catalog.apply_recipe", unwinds=True)
async def apply_recipe(ctx: Context, recipe_id: str, skip_engine: bool = False, skip_models: bool = False) -> Result:
    return await applying.apply(ctx, recipe_id, skip_engine, skip_models)


@handles("catalog.match")
async def match_recipes(
    ctx: Context,
    device_id: str | None = None,
    overrides: Parts | None = None,
    type: str | None = None,
    tags: Sequence[str] | None = None,
    recipe_id: str | None = None,
    max_bytes: int | None = None,
    refused: bool = False,
    limit: int = 5,
) -> Result:
    shelf, matcher = Shelf(ctx.services.store), Matcher(ctx.services)
    rows = {row["id"]: row for row in shelf.list(type, tags or (), None)}
    known = shelf.all()
    asked = [shelf.get(recipe_id)] if recipe_id else [known[id] for id in rows if max_bytes is None or known[id]["size_bytes"] <= max_bytes]
    machine = await matcher.machine(device_id, overrides)
    matches, misses = await matcher.all(asked, machine)
    told = [{"recipe_id": miss.recipe["name"], "device_id": miss.device["id"], "reason": miss.reason} for miss in misses]
    return {
        "recipes": [shown(match, shelf.about(match.fit.recipe["name"])) for match in matches[:limit]],
        "total": len(matches),
        "refused": told if refused or recipe_id else [],
        "refused_total": len(told),
    }


@handles("catalog.list")
async def list_recipes(
    ctx: Context, type: str | None = None, tags: Sequence[str] | None = None, source: str | None = None, limit: int = 100, offset: int = 0
) -> Result:
    found = Shelf(ctx.services.store).list(type, tags or (), source)
    return {"recipes": found[offset : offset + limit], "total": len(found)}


@handles("catalog.get")
async def get_recipe(ctx: Context, recipe_id: str) -> Result:
    return _described(ctx, recipe_id)


@handles("catalog.check_status")
async def check_status(ctx: Context, recipe_id: str) -> Result:
    return await standing(ctx.services, Shelf(ctx.services.store).get(recipe_id))


@handles("catalog.recipes")
async def all_recipes(ctx: Context) -> Result:
    found = Shelf(ctx.services.store).list(None, (), None)
    return {"recipes": found, "total": len(found)}


@handles("catalog.by_id")
async def recipe_by_id(ctx: Context, recipe_id: str) -> Result:
    return _described(ctx, recipe_id)


@plans("catalog.create_recipe")
async def plan_create(ctx: Context, given: Parts) -> Change:
    read, _ = _read(given.get("definition"), given.get("recipe"), given.get("variant"))
    return Change() if Shelf(ctx.services.store).all().get(read["name"]) == read else Change(creates=(("recipe", read["name"]),))


@plans("catalog.delete_recipe")
async def plan_delete(ctx: Context, given: Parts) -> Change:
    record = Shelf(ctx.services.store).refuse_builtin(given["recipe_id"])
    return Change(deletes=(("recipe", record["id"]),), saw={"made": record["created_at"]})


@plans("catalog.validate_recipe")
async def plan_validate(ctx: Context, given: Parts) -> Change:  # noqa: ARG001
    return Change()


@plans("catalog.apply_recipe")
async def plan_apply(ctx: Context, given: Parts) -> Change:
    recipe = Shelf(ctx.services.store).get(given["recipe_id"])
    now = await standing(ctx.services, recipe)
    if now["status"] == "applied":
        return Change()
    served = now["service"] is not None and now["service"]["status"] in ("running", "starting")
    match = None if served else await Matcher(ctx.services).one(recipe)
    name, fetches = recipe["name"], not now["model"]["present"]
    creates = [("model", name)] if fetches else []
    creates += [("service", name)] if now["service"] is None else []
    if match is not None and match.fit.seat is not None and not match.fit.seat.installed:
        creates.insert(0, ("engine", match.fit.seat.name))
    size = recipe["size_bytes"] if fetches and recipe["sources"][0]["source"] != "builtin" else 0
    needs = match.fit.needs_bytes if match else 0
    return Change(creates=tuple(creates), starts=(("service", name),), download_bytes=size, memory_bytes=needs)


def _read(definition: str | None, given: Parts | None, variant: str | None) -> tuple[Recipe, list[str]]:
    """The recipe that the arguments hold, and what was left of a foreign format. Raises InvalidArgument, with issues where it is none."""
    if definition is None and given is None:
        raise InvalidArgument("give a definition or a recipe", hint="definition is a YAML text, recipe the same as an object")
    value, places = opened(definition if definition is not None else given or {})
    notes: list[str] = []
    if migration.is_foreign(value):
        value, notes = migration.translated(value, places, {} if definition is None else plain(given or {}), variant)
        places = Places()  # what is wrong with it now stands nowhere in the text
    elif definition is not None and given is not None:
        raise InvalidArgument("definition is the whole recipe", hint="recipe beside it completes a document of the Go AIMA alone")
    if not isinstance(value, Mapping):
        raise refusal("this is no recipe", [Issue("", "it is no object")])
    if found := wrong_with(value, places):
        raise refusal("this is no recipe", in_order(found))
    return dict(value), notes


def _described(ctx: Context, recipe_id: str) -> Result:
    shelf = Shelf(ctx.services.store)
    return {"recipe": shelf.about(recipe_id), "document": dict(shelf.get(recipe_id))}
