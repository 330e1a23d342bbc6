"""What errors about services say, and the calls that they lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.errors import AimaError, AlreadyExists
from aima_lib.infra.store import Document
from aima_lib.services.replicas import definition


def refuse_other(old: Document, other: Mapping[str, Any]) -> None:
    """Raise AlreadyExists where a service serves something else than `other` defines."""
    own = definition(old)
    different = [key for key in other if own[key] != other[key]]
    if different:
        said = ", ".join(f"{key} is {own[key]!r}, not {other[key]!r}" for key in different)
        change = {"unit": "service.update", "arguments": {"service_id": old["id"], **{key: other[key] for key in different}}}
        raise AlreadyExists(
            f"there is a service called {old['id']!r} already: {said}",
            hint="service.update changes it; or give this one another name",
            next=[change, call_of("service.get", old["id"])],
        )


def how_to_go_on(error: AimaError, service_id: str, gave_way: Sequence[str]) -> AimaError:
    """The same error, which also names the calls that lead on from a failed service, and who made way for it."""
    explain = {"unit": "event.explain", "arguments": {"subject": service_id}}
    calls = [*error.next, explain, call_of("service.start", service_id), call_of("service.delete", service_id)]
    hint = f"{error.hint or 'mend the cause'}; the service {service_id} stays as failed until it is started or deleted"
    hint += f"; {', '.join(gave_way)}, which made way for it, is loaded again" if gave_way else ""
    return type(error)(f"service {service_id}: {error}", hint=hint, next=calls, details=error.details)


def call_of(unit: str, service_id: str) -> Document:
    """The call of a unit that takes a service alone."""
    return {"unit": unit, "arguments": {"service_id": service_id}}
