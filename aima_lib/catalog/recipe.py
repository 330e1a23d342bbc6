"""One recipe: read strictly, judged by its schema and by what a schema cannot say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aima_lib.engines.base import Engine
from aima_lib.engines.roster import roster
from aima_lib.errors import InvalidArgument
from aima_lib.flows.judge import Judge
from aima_lib.flows.source import LONGEST, Issue, Places, in_order, parse, plain, refusal
from aima_lib.flows.source import Path as At
from aima_lib.names import did_you_mean
from aima_lib.registry import PACKAGE, SCHEMAS

FOLDER = PACKAGE / "recipes"
UNVERIFIED = "unverified"
Recipe = Mapping[str, Any]
# What a repository of each source looks like. None of them is a path, or a place that only this machine can reach.
REPOS = {
    "huggingface": r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\w+)?",
    "modelscope": r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*",
    "ollama": r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(:[\w.-]+)?",
    "pypi": r"[A-Za-z0-9][\w.,{}-]*",
    "url": r"https://[A-Za-z0-9][A-Za-z0-9.-]*(:\d+)?/[^\s@]+",
    "builtin": r"[a-z0-9][a-z0-9._-]*",
}


@cache
def judge() -> Judge:
    """The schema, compiled once."""
    schema = json.loads((SCHEMAS / "recipe.schema.json").read_text(encoding="utf-8"))
    schema["properties"]["options"] = json.loads((SCHEMAS / schema["properties"]["options"]["$ref"]).read_text(encoding="utf-8"))
    return Judge(schema)


@cache
def engines() -> Mapping[str, Engine]:
    """The adapters as far as they are the same in every home: names, types, options."""
    return roster({"engines": {"llama_server": None, "espeak_ng": None, "remotes": {}, "rpc_servers": {}}}, Path("/nowhere"))


def read(given: str | Mapping[str, Any]) -> Recipe:
    """The recipe of a YAML text, or of a JSON value.

    Raises:
        InvalidArgument: it is none; its details hold every issue, each with its path.
    """
    value, places = opened(given)
    if found := in_order(issues(value, places)):
        raise refusal("this is no recipe", found)
    return dict(value)


def opened(given: str | Mapping[str, Any]) -> tuple[Any, Places]:
    """The JSON value of a document and its places, however it was given. Raises InvalidArgument as `parse` does."""
    return parse(given) if isinstance(given, str) else (plain(given), Places())


def issues(value: Any, places: Places) -> list[Issue]:
    """Everything that is wrong with a recipe."""
    found = list(judge().issues(value, (), places))
    return found or list(_beyond(value, places))


def _beyond(recipe: Recipe, places: Places) -> Iterator[Issue]:
    for place, given in enumerate(recipe["engines"]):
        yield from _engine(recipe, ("engines", place), engine_of(given), places)
    for place, source in enumerate(recipe["sources"]):
        yield from _source(("sources", place), source, places)
    if recipe["memory_bytes"] < recipe["size_bytes"] and recipe["type"] in ("llm", "vlm"):
        yield places.issue(("memory_bytes",), f"{recipe['memory_bytes']} is less than the weights, {recipe['size_bytes']}")
    for place, figures in enumerate(recipe.get("expected", ())):
        if "measured" not in figures and not figures["evidence"].startswith(UNVERIFIED):
            why = "a figure that is not unverified cites where it was measured"
            yield places.issue(("expected", place, "evidence"), why, "begin it with unverified, or give measured")
    wanted = recipe.get("hardware", {}).get("memory_bytes", {})
    if wanted.get("min", 0) > wanted.get("max", 1 << 62):
        yield places.issue(("hardware", "memory_bytes"), f"min {wanted['min']} is more than max {wanted['max']}")


def _engine(recipe: Recipe, at: At, given: Mapping[str, Any], places: Places) -> Iterator[Issue]:
    engine = engines().get(given["name"])
    if engine is None:
        near = did_you_mean(given["name"], engines()) or f"there are: {', '.join(engines())}"
        yield places.issue(at, f"no engine is called {given['name']!r}", near)
        return
    if engine.types and recipe["type"] not in engine.types:
        yield places.issue(at, f"{engine.name} serves {', '.join(engine.types)}, and not {recipe['type']}")
    for option in recipe.get("options", {}):
        if option not in engine.options:
            known = f"it takes {', '.join(sorted(engine.options))}"
            yield places.issue(("options", option), f"{engine.name} has no option {option!r}", known, key=True)


def _source(at: At, source: Mapping[str, Any], places: Places) -> Iterator[Issue]:
    repo = source["repo"]
    if not re.fullmatch(REPOS[source["source"]], repo) or ".." in re.sub(r"\{\d+\.\.\d+\}", "", repo):
        known = "a path of a machine is never one" if repo.startswith(("/", ".", "~", "file:")) else None
        yield places.issue((*at, "repo"), f"{repo[:80]!r} is no repository of {source['source']}", known)
    file = source.get("file", "")
    if file.startswith(("/", "~")) or ".." in file.split("/"):
        yield places.issue((*at, "file"), f"{file[:80]!r} leads out of the repository")


def engine_of(given: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry of `engines`: name, and version or image where they are said."""
    return {"name": given} if isinstance(given, str) else given


def load(folder: Path = FOLDER) -> list[Recipe]:
    """Every recipe of a folder, smallest first.

    Raises:
        InvalidArgument: a file is no recipe.
    """
    recipes = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            with path.open(encoding="utf-8") as file:
                recipe = read(file.read(LONGEST + 1))
        except (InvalidArgument, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path}: {error}", hint="see schemas/recipe.schema.json") from error
        if recipe["name"] != path.stem:
            raise InvalidArgument(f"{path}: name: is not {path.stem}", hint="see schemas/recipe.schema.json")
        recipes.append(recipe)
    return sorted(recipes, key=lambda recipe: int(recipe["size_bytes"]))
