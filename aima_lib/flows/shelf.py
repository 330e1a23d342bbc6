"""The pipelines of a home: those that come with AIMA, and those that were made here, each in every version it has had.

One that was made here under the name of one that comes with AIMA stands in its place until it is deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from aima_lib.door import Caller
from aima_lib.errors import FailedPrecondition, NotFound
from aima_lib.flows.able import Able, reasons
from aima_lib.flows.document import Pipeline, as_document, read
from aima_lib.flows.journal import Journal
from aima_lib.infra.clock import now
from aima_lib.infra.store import Document, Store
from aima_lib.registry import Registry

BUILTIN = Path(__file__).parent / "pipelines"
SCOPES = ("read", "logs", "inference", "write", "delete", "admin", "exec", "audit")


@dataclass(frozen=True, slots=True)
class Edition:
    """One version of a pipeline, and who made it: None for one that comes with AIMA."""

    pipeline: Pipeline
    version: int
    creator: Caller | None


class Shelf:
    """Reads and writes the pipelines of a store, for one call: what it has read of the models it keeps."""

    def __init__(self, store: Store, registry: Registry, meant: Callable[[str], str] = str) -> None:
        """meant: what the name of a model stands for here."""
        self._store, self._registry, self._journal, self._meant = store, registry, Journal(store), meant

    def list(self, source: str | None = None) -> Sequence[Document]:
        """What is known of each pipeline: those of this home in the order they were made, then those that come with AIMA.

        One that is stood in for is told only where those that come with AIMA are asked for.
        """
        made = self._store.find("pipeline")
        own = [] if source == "builtin" else [self._shown(record, self._pipeline(record)) for record in made]
        hidden = set() if source == "builtin" else {record["id"] for record in made}
        ours = [] if source == "user" else [self._builtin(pipeline) for pipeline in builtins().values() if pipeline.name not in hidden]
        return [*own, *ours]

    def find(self, pipeline_id: str) -> Pipeline | None:
        """The newest version of a pipeline, or None."""
        record = self._store.peek("pipeline", pipeline_id)
        return self._pipeline(record) if record else builtins().get(pipeline_id)

    def get(self, pipeline_id: str, version: int | None = None) -> tuple[Document, Pipeline]:
        """One pipeline, in its newest version or in this one. Raises NotFound."""
        if version is not None:
            if self._journal.version(pipeline_id, version) is None:
                call = {"unit": "pipeline.get", "arguments": {"pipeline_id": pipeline_id}}
                raise NotFound(f"{pipeline_id} has no version {version} on record", next=[call])
            found = self.edition(pipeline_id, version)
            about = self._builtin(found.pipeline) if found.creator is None else self._shown(self._record(pipeline_id), found.pipeline)
            return about | {"version": version}, found.pipeline
        if (builtin := self._unmade(pipeline_id)) is not None:
            return self._builtin(builtin), builtin
        record = self._record(pipeline_id)
        pipeline = self._pipeline(record)
        return self._shown(record, pipeline), pipeline

    def _unmade(self, pipeline_id: str) -> Pipeline | None:
        """The one that comes with AIMA, unless one that was made here stands in its place."""
        return None if self._store.peek("pipeline", pipeline_id) else builtins().get(pipeline_id)

    def _record(self, pipeline_id: str) -> Document:
        record = self._store.peek("pipeline", pipeline_id)
        if record is None:
            error = self._store.missing("pipeline", pipeline_id)
            error.hint = error.hint if "did you mean" in str(error.hint) else f"there are: {', '.join([*self._ids()[-5:], *builtins()])}"
            raise error
        return record

    async def create(self, pipeline: Pipeline, by: Caller) -> tuple[Document, Pipeline]:
        """Keep a pipeline; under a name that is taken, as its next version. The same document again changes nothing."""
        id = pipeline.name
        document = as_document(pipeline)
        version = await self._journal.add_version(id, _digest(document), document, _told(by))
        known = self._store.peek("pipeline", id)
        if known is None or known["version"] != version:
            made = known["created_at"] if known else now()
            record = {"id": id, "version": version, "created_at": made, "updated_at": now(), "created_by": by.name}
            await self._store.put("pipeline", record)
        return self.get(id)

    async def delete(self, pipeline_id: str) -> int:
        """Forget a pipeline; runs that are under way go on. Returns how many versions it had. Raises NotFound, FailedPrecondition."""
        if self._unmade(pipeline_id) is not None:
            raise FailedPrecondition(f"{pipeline_id} comes with AIMA and stays")
        record, _ = self.get(pipeline_id)
        await self._store.delete("pipeline", pipeline_id)
        return int(record["version"])

    async def pin(self, pipeline_id: str) -> int:
        """The number of the newest version, which is on record from now on. Raises NotFound."""
        if (pipeline := self._unmade(pipeline_id)) is None:
            self.get(pipeline_id)
            return int(self._store.get("pipeline", pipeline_id)["version"])
        document = as_document(pipeline)
        return await self._journal.add_version(pipeline_id, _digest(document), document, None)

    def edition(self, pipeline_id: str, version: int) -> Edition:
        """A version that is on record."""
        found = self._journal.version(pipeline_id, version)
        assert found is not None, f"{pipeline_id} has no version {version}"
        text, creator = found
        return Edition(_parsed(text), version, None if creator is None else _caller(creator))

    def newest(self) -> Sequence[tuple[str, Edition]]:
        """The pipelines that were made here, each in its newest version."""
        return [(record["id"], self.edition(record["id"], record["version"])) for record in self._store.find("pipeline")]

    def missing(self, pipeline: Pipeline) -> Sequence[str]:
        """The units that it calls and that are not there."""
        asked = [call for step in pipeline.steps for call in (step.type, step.compensate and step.compensate.type) if call]
        return [name for name in dict.fromkeys(asked) if name not in self._registry or self._registry[name].handler is None]

    @cached_property
    def _able(self) -> Able:
        return Able(self._store, self._meant)

    def _ids(self) -> Sequence[str]:
        return [record["id"] for record in self._store.find("pipeline")]

    def _pipeline(self, record: Document) -> Pipeline:
        return self.edition(record["id"], record["version"]).pipeline

    def _shown(self, record: Mapping[str, Any], pipeline: Pipeline) -> Document:
        return {**record, "source": "user", "shadows_builtin": record["id"] in builtins(), **self._described(pipeline)}

    def _builtin(self, pipeline: Pipeline) -> Document:
        nobody = {"created_at": None, "updated_at": None, "created_by": None}
        more = {"version": None, **nobody, "source": "builtin", "shadows_builtin": False}
        return {"id": pipeline.name, **more, **self._described(pipeline)}

    def _described(self, pipeline: Pipeline) -> Document:
        missing = self.missing(pipeline)
        never, named = self._able.lacking(pipeline)
        return {
            "description": pipeline.description,
            "steps": [step.id for step in pipeline.steps],
            "units": list(dict.fromkeys(step.type for step in pipeline.steps)),
            "runnable": not (missing or never),
            "reason": "; ".join(reasons(missing, never, named)) or None,
        }


@cache
def builtins() -> Mapping[str, Pipeline]:
    """The pipelines that come with AIMA, by name."""
    found = [read(path.read_text(encoding="utf-8")) for path in sorted(BUILTIN.glob("*.yaml"))]
    return {pipeline.name: pipeline for pipeline in found}


def effective(caller: Caller, creator: Caller | None) -> Caller:
    """A caller who may what both may: nobody gains by running another's pipeline, nor by having one run by another."""
    if creator is None:
        return caller
    scopes = frozenset(scope for scope in SCOPES if caller.may(scope) and creator.may(scope))
    if all(creator.may(scope) for scope in caller.scopes):
        scopes = caller.scopes
    models = caller.models
    if creator.models is not None:
        models = creator.models if models is None else models & creator.models
    return Caller(caller.name, scopes, models)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Pipeline:
    return read(json.loads(text))


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _told(caller: Caller) -> dict[str, Any]:
    models = None if caller.models is None else sorted(caller.models)
    return {"name": caller.name, "scopes": sorted(caller.scopes), "models": models}


def _caller(told: Mapping[str, Any]) -> Caller:
    return Caller(told["name"], frozenset(told["scopes"]), None if told["models"] is None else frozenset(told["models"]))
