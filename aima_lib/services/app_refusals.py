"""What is said to whoever asked for what an app cannot do, with the calls that lead on."""

from __future__ import annotations

from aima_lib.errors import AimaError, AlreadyExists
from aima_lib.infra.store import Document


def other(old: Document) -> AlreadyExists:
    """There is an app of that name, which is something else."""
    update = {"unit": "app.update", "arguments": {"app_id": old["id"]}}
    hint = "app.update changes it; or give this one another name"
    return AlreadyExists(
        f"there is an app called {old['id']!r} already, by another template or configuration",
        hint=hint,
        next=[call("app.get", old["id"]), update],
    )


def undone(error: AimaError, app_id: str, kept: bool) -> AimaError:
    """The same error, which also says what became of the install."""
    left = "its data from before is as it was" if kept else "what was made of it is gone again"
    calls = [call for call in error.next if call.get("unit") != "app.logs"]  # they went with the container
    return type(error)(
        f"app {app_id} was not installed: {error}", hint=f"{error.hint or 'mend the cause'}; {left}", next=calls, details=error.details
    )


def call(unit: str, app_id: str) -> Document:
    """A call about an app."""
    return {"unit": unit, "arguments": {"app_id": app_id}}


def wait(run_id: str) -> Document:
    """The call that waits for a run."""
    return {"unit": "run.wait", "arguments": {"run_id": run_id}}
