"""Calls that errors about engines lead to, and where an instance listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.infra.store import Document


def port_of(instance: Mapping[str, Any]) -> int | None:
    """The loopback port of an instance, where it has one."""
    return int(instance["base_url"].rpartition(":")[2]) if instance["base_url"] else None


def logs_call(instance_id: str) -> Document:
    """What it said."""
    return {"unit": "engine.logs", "arguments": {"instance_id": instance_id}}


def start_call(engine: str, model_id: str, options: Mapping[str, Any], service_id: str | None) -> Document:
    """The call that starts it so."""
    if service_id is not None:
        arguments = {"model_id": model_id, "name": service_id, "engine": engine, "options": dict(options)}
        return {"unit": "service.create", "arguments": arguments}
    return {"unit": "engine.start", "arguments": {"name": engine, "model_id": model_id, "options": dict(options)}}
