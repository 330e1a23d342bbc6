"""What an explanation needs to know of apps: which runs are about one, what its log says, and which calls lead on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aima_lib.infra.store import Document
from aima_lib.services.verdict import Entry

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
WRITTEN = re.compile(r"^name:[ \t]*[\"']?([a-z0-9-]+)", re.MULTILINE)


def app_of(run: Mapping[str, Any]) -> str | None:
    """The app that a run is about, also one whose install has left nothing."""
    if not run["unit"].startswith("app."):
        return None
    given, template = run["input"], str(run["input"].get("template") or "")
    written = NAME.fullmatch(template) or WRITTEN.search(template)
    named = given.get("app_id") or given.get("name") or (written[written.re.groups] if written else None)
    return None if named is None else str(named)


def stamped(lines: Sequence[str]) -> list[str]:
    """Lines of Docker's with their times as AIMA writes them."""
    return [f"{line[:23]}Z {line.partition(' ')[2]}" for line in lines if line[22:23].isdigit()]


def calls(record: Document | None, app_id: str, status: str | None, entries: Iterable[Entry], runs: Sequence[Document]) -> list[Document]:
    """What to do next about an app. record: None where there is none any more."""
    if record is None:
        failed = next((run for run in runs if app_of(run) == app_id and run["error"]), None)
        return [] if failed is None else [*failed["error"].get("next", ()), {"unit": "run.get", "arguments": {"run_id": failed["id"]}}]
    about = {"app_id": app_id}
    starved = [entry for entry in entries if entry.kind == "app.oom_detected" and entry.facts["memory_limit_bytes"]]
    found: list[Document] = [{"unit": "app.logs", "arguments": about}]
    if starved:
        facts, config = starved[-1].facts, record["config"]
        wider = {**config.get("memory_bytes", {}), facts["container"]: 2 * int(facts["memory_limit_bytes"])}
        found.append({"unit": "app.update", "arguments": {**about, "config": {**config, "memory_bytes": wider}}})
    return found + ([{"unit": "app.start", "arguments": about}] if status in ("failed", "stopped") else [])
