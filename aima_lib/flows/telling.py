"""What a run of a pipeline says while it goes on: events for everyone, and progress, step by step, for whoever waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio

from aima_lib.flows.document import Pipeline
from aima_lib.flows.journal import WHOLE, FlowRow, Record
from aima_lib.infra.clock import parse
from aima_lib.infra.events import Events
from aima_lib.infra.progress import Send

EVERY_SECONDS = 0.05
MOST_LOGGED = 1000
SHOWN = {"started": "running"}


class Telling:
    """The voice of one run."""

    def __init__(self, row: FlowRow, pipeline: Pipeline, events: Events) -> None:
        self._row, self._pipeline, self._events = row, pipeline, events
        self._steps = {step.id: step for step in pipeline.steps}
        self._parts: dict[str, dict[str, Any]] = {
            step.id: {"id": step.id, "status": "pending", "message": None, "completed": None, "total": None} for step in pipeline.steps
        }
        self._undoing: str | None = None
        self._news = anyio.Event()

    def know(self, records: Iterable[Record]) -> None:
        """What was recorded before this host. An event of it that the other did not come to log is logged now."""
        told = {(event["payload"]["step"], event["payload"]["compensation"]) for event in self._logged("step_completed", MOST_LOGGED)}
        for record in records:
            self._note(record)
            if record.is_final and record.item == WHOLE and (record.step, record.undo) not in told:
                self._tell(record)

    def hear(self, record: Record) -> None:
        """A call has begun, or ended."""
        self._note(record)
        if record.is_final and record.item == WHOLE:
            self._tell(record)

    def _tell(self, record: Record) -> None:
        took = None
        if record.started_at and record.finished_at:
            took = round((parse(record.finished_at) - parse(record.started_at)).total_seconds() * 1000)
        step = self._steps[record.step]
        unit = step.compensate.type if record.undo and step.compensate else step.type
        error = (record.error or {}).get("code")
        told = {"step": record.step, "unit": unit, "status": record.status, "attempts": record.attempts, "duration_ms": took}
        self.publish("step_completed", **told, compensation=record.undo, code=error)

    def progress(self, record: Record, item: Mapping[str, Any] | None) -> None:
        """A call that is a run says how far it is; without an item, its own row has changed."""
        self._note(record)
        if item is not None and record.item == WHOLE:
            part = self._parts[record.step]
            part["message"], part["completed"], part["total"] = item["message"], item.get("completed"), item.get("total")

    def publish(self, name: str, **payload: Any) -> None:
        """An event of this run."""
        told = {"run_id": self._row.run_id, "pipeline_id": self._row.pipeline_id, **payload}
        self._events.publish(f"pipeline.{name}", told, subject=self._row.run_id)

    def publish_once(self, name: str, **payload: Any) -> None:
        """An event that a run has one of, whichever of its hosts comes to log it."""
        if not self._logged(name, 1):
            self.publish(name, **payload)

    def _logged(self, name: str, most: int) -> Sequence[Mapping[str, Any]]:
        return self._events.page(0, most, (f"pipeline.{name}",), self._row.run_id)

    async def report(self, send: Send) -> None:
        """Send progress when there is news, and not too often; until cancelled."""
        while True:
            news = self._news
            await send(self.state())
            await anyio.sleep(EVERY_SECONDS)
            await news.wait()

    def state(self) -> dict[str, Any]:
        """Progress as types/progress.json has it."""
        parts = [dict(part) for part in self._parts.values()]
        by = {status: [part["id"] for part in parts if part["status"] == status] for status in ("running", "retrying", "waiting")}
        active = by["running"] + by["retrying"]
        phase = "undoing" if self._undoing else "running" if active or not by["waiting"] else "waiting for approval"
        said = self._undoing or ", ".join(active or by["waiting"]) or self._pipeline.name
        done = sum(part["status"] not in ("pending", "running", "retrying", "waiting") for part in parts)
        return {"phase": phase, "message": said, "completed": done, "total": len(parts), "parts": parts}

    def _note(self, record: Record) -> None:
        part = self._parts[record.step]
        if record.undo:
            self._undoing = record.step
            if record.status == "succeeded":
                part["status"] = "undone"
        elif record.item == WHOLE:
            part["status"] = SHOWN.get(record.status, record.status)
            part["message"] = str((record.error or {}).get("message", "")) or None
        elif record.is_final:
            part["completed"] = (part["completed"] or 0) + 1
        elif record.status == "waiting":
            part["status"] = "waiting"
        news, self._news = self._news, anyio.Event()
        news.set()
