"""The recipes of a home: those that come with AIMA, and those that were made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from aima_lib.catalog.recipe import Recipe, load
from aima_lib.door import Caller
from aima_lib.errors import AlreadyExists, FailedPrecondition, NotFound
from aima_lib.infra.clock import now
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, nearest


@cache
def builtins() -> Mapping[str, Recipe]:
    """Those that come with AIMA, smallest first."""
    return {recipe["name"]: recipe for recipe in load()}


class Shelf:
    """Reads and writes the recipes of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> Mapping[str, Recipe]:
        """Every recipe: those that come with AIMA, then those made here, oldest first."""
        return {**builtins(), **{record["id"]: record["recipe"] for record in self._store.find("recipe")}}

    def get(self, recipe_id: str) -> Recipe:
        """One recipe. Raises NotFound naming the nearest."""
        known = self.all()
        if recipe_id not in known:
            hint = did_you_mean(recipe_id, known) or f"there are: {', '.join(known)}"
            call = {"unit": "catalog.list", "arguments": {}}
            raise NotFound(f"no recipe called {recipe_id!r}", hint=hint, next=[call], details={"nearest": nearest(recipe_id, known)})
        return known[recipe_id]

    def about(self, recipe_id: str) -> Document:
        """What a list tells of a recipe: types/recipe.json. Raises NotFound."""
        recipe = self.get(recipe_id)
        record = None if recipe_id in builtins() else self._store.peek("recipe", recipe_id)
        told = {key: recipe[key] for key in ("title", "type", "license", "size_bytes", "memory_bytes")}
        return {
            "id": recipe["name"],
            **told,
            "tags": [*recipe.get("tags", ())],
            "engines": [each if isinstance(each, str) else each["name"] for each in recipe["engines"]],
            "sources": [source["source"] for source in recipe["sources"]],
            "source": "builtin" if record is None else "user",
            "created_at": record and record["created_at"],
        }

    def list(self, type: str | None, tags: Sequence[str], source: str | None) -> list[Document]:
        """What is known of each recipe that has the type and all tags."""
        rows = [self.about(name) for name in self.all()]
        return [
            row
            for row in rows
            if (type is None or row["type"] == type) and set(tags) <= set(row["tags"]) and (source is None or row["source"] == source)
        ]

    async def create(self, recipe: Recipe, by: Caller) -> bool:
        """Keep a recipe, in the place of one of that name that was made here. Returns whether anything changed.

        Raises:
            AlreadyExists: another one that comes with AIMA has the name.
        """
        id = recipe["name"]
        if self.all().get(id) == recipe:
            return False
        if id in builtins():
            calls = [{"unit": "catalog.get", "arguments": {"recipe_id": id}}]
            raise AlreadyExists(f"another recipe called {id} comes with AIMA", hint="choose another name", next=calls)
        await self._store.put("recipe", {"id": id, "recipe": dict(recipe), "created_at": now(), "created_by": by.name})
        return True

    def refuse_builtin(self, recipe_id: str) -> Document:
        """The record of a recipe that was made here. Raises NotFound, or FailedPrecondition for one that comes with AIMA."""
        self.get(recipe_id)
        if recipe_id in builtins():
            raise FailedPrecondition(f"{recipe_id} comes with AIMA and stays")
        return self._store.get("recipe", recipe_id)

    async def delete(self, recipe_id: str) -> None:
        """Forget a recipe; what it was applied to stays."""
        self.refuse_builtin(recipe_id)
        await self._store.delete("recipe", recipe_id)
