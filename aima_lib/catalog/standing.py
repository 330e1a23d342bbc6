"""What really stands of a recipe: looked at, not remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyio import to_thread

from aima_lib.catalog.recipe import Recipe, engine_of
from aima_lib.errors import AimaError
from aima_lib.services import Services


async def standing(services: Services, recipe: Recipe) -> dict[str, Any]:
    """Engine, model and service of a recipe as they are now; status is applied, partial or absent."""
    service = _service(services, recipe)
    engine = await _engine(services, recipe, service)
    model = await _model(services, recipe)
    running = service is not None and service["status"] == "running" and service["ready_replicas"] > 0
    differences = [*_differences(recipe, service, engine), *foreign(services, recipe)]
    whole = running and engine["installed"] and model["intact"] and not differences
    some = service is not None or model["present"]
    return {
        "recipe_id": recipe["name"],
        "status": "applied" if whole else "partial" if some else "absent",
        "engine": engine,
        "model": model,
        "service": service and {key: service[key] for key in ("id", "status", "health", "ready_replicas", "error")},
        "differences": differences,
    }


def _service(services: Services, recipe: Recipe) -> Mapping[str, Any] | None:
    return services.serving.get(recipe["name"]) if services.store.peek("service", recipe["name"]) else None


async def _engine(services: Services, recipe: Recipe, service: Mapping[str, Any] | None) -> dict[str, Any]:
    """The engine that serves it, else the first of the recipe's that is installed, else its first."""
    catalog = services.engines.catalog
    names = [service["engine"]] if service else [engine_of(each)["name"] for each in recipe["engines"]]
    rows = []
    for name in names:
        catalog.forget(name)
        found = await catalog.find(name)
        rows.append({"name": name, "installed": found.installed, "version": found.version, "reason": found.reason})
    return next((row for row in rows if row["installed"]), rows[0])


async def _model(services: Services, recipe: Recipe) -> dict[str, Any]:
    told = {"id": recipe["name"], "present": services.models.has(recipe["name"]), "intact": False, "status": None, "reason": None}
    if not told["present"]:
        return told | {"reason": "it is not here"}
    model = services.models.get(recipe["name"])
    try:
        await to_thread.run_sync(services.models.path, model)
    except AimaError as error:
        return told | {"status": model["status"], "reason": str(error)}
    intact = await to_thread.run_sync(services.models.intact, model)
    reason = None if intact else "a file has another size than was recorded, or is gone"
    return told | {"status": model["status"], "intact": intact, "reason": reason}


def foreign(services: Services, recipe: Recipe) -> list[str]:
    """Whether the model of that name came from somewhere else, as far as its record tells."""
    model = services.store.peek("model", recipe["name"]) or {"source": {}}
    repo, known = model["source"].get("repo"), {source["repo"] for source in recipe["sources"]}
    return [f"its weights came from {repo}, which the recipe does not name"] if repo and repo not in known else []


def _differences(recipe: Recipe, service: Mapping[str, Any] | None, engine: Mapping[str, Any]) -> list[str]:
    """Where what stands is not what the recipe says."""
    if service is None:
        return []
    wanted, found = recipe.get("options", {}), service["options"]
    other = [key for key in {*wanted, *found} if wanted.get(key) != found.get(key)]
    said = [f"options.{key}: {found.get(key)} there, {wanted.get(key)} in the recipe" for key in other]
    if service["model_id"] != recipe["name"]:
        said.append(f"it serves {service['model_id']}")
    known = {each["name"]: each for each in map(engine_of, recipe["engines"])}
    if service["engine"] not in known:
        said.append(f"it is served by {service['engine']}, which the recipe does not name")
    pinned = known.get(service["engine"], {}).get("version")
    if pinned and engine["version"] and pinned != engine["version"]:
        said.append(f"{service['engine']} is {engine['version']}, the recipe was written for {pinned}")
    return sorted(said)
