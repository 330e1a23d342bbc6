"""Small worlds for tests of the core: unit files and their handlers, written into a folder and loaded like the real ones."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from aima_lib.door import OWNER, Caller
from aima_lib.errors import ApprovalRequired
from aima_lib.gateway import Gateway
from aima_lib.infra.events import Events
from aima_lib.infra.store import Store
from aima_lib.registry import Registry

OPEN = {"type": "object", "properties": {}}
NOTICE = {"type": "object", "required": ["number"], "additionalProperties": False, "properties": {"number": {"type": "integer"}}}


def unit(kind: str, name: str, **keys: Any) -> dict[str, Any]:
    """A unit file's content with what every kind needs filled in."""
    body: dict[str, Any] = {
        "$schema": "../unit.schema.json",
        "kind": kind,
        "name": name,
        "title": name,
        "description": f"The {kind} {name} of a test.",
    }
    if kind in ("command", "query"):
        body |= {"scope": "read", "inputSchema": OPEN | {"additionalProperties": False}, "outputSchema": OPEN, "errors": []}
        body |= {
            "annotations": {"readOnlyHint": kind == "query", "idempotentHint": True},
            "examples": [{"title": "it", "input": {}, "output": {}}],
        }
    if kind == "event":
        body |= {"payloadSchema": NOTICE}
    return body | keys


def write_schemas(folder: Path, *units: Mapping[str, Any]) -> Path:
    """A schemas folder that holds these units."""
    for definition in units:
        domain, action = str(definition["name"]).split(".")
        path = folder / domain / f"{action}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(definition), encoding="utf-8")
    folder.mkdir(exist_ok=True)
    return folder


PLANNER = """
@plans({names})
async def foresee(ctx, given):
    return Change()
"""


def write_handlers(folder: Path, name: str, source: str) -> ModuleType:
    """A package called `name` with one module of handlers; imported. What has no planner in it gets one that foresees nothing."""
    handled = re.findall(r"@handles\(['\"]([^'\"]+)['\"]\)", source)
    if names := ", ".join(repr(unit) for unit in dict.fromkeys(handled) if f"@plans('{unit}')" not in source):
        source += PLANNER.format(names=names)
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "only.py").write_text(
        "from __future__ import annotations\nimport anyio\nfrom aima_lib.errors import *\nfrom aima_lib.infra.change import Change\n"
        "from aima_lib.registry import handles, plans\n" + source,
        encoding="utf-8",
    )
    return imported(folder, name)


def imported(folder: Path, name: str) -> ModuleType:
    """A package that was written into a folder, here or by another process."""
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


async def agreed(gateway: Gateway, name: str, arguments: Mapping[str, Any], caller: Caller = OWNER) -> Mapping[str, Any]:
    """The output of a call whose plan is agreed to: by its caller, and by the owner where it takes somebody else's word."""
    try:
        return await gateway.call(name, arguments, caller=caller)
    except ApprovalRequired as refusal:
        plan = refusal.details["plan"]
        if plan["policy"] == "approve":
            await gateway.call("approval.approve", {"approval_id": plan["id"]})
        return await gateway.call(name, arguments, caller=caller, token=plan["token"])


def events_of(store: Store, folder: Path, *names: str) -> Events:
    """A log that knows these events; each carries one number."""
    registry = Registry.described(write_schemas(folder, *(unit("event", name) for name in names)))
    return Events(store, dict(registry))
