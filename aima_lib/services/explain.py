"""Why something is as it is: one timeline from events, runs, the audit log, logs and devices' samples, oldest cause first.

What is gathered is bounded at every step, and what is left out, for want of a scope or of room, is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aima_lib.engines.cause import STAMP, telling
from aima_lib.errors import AimaError, NotFound
from aima_lib.infra.clock import moment, stamp
from aima_lib.infra.events import Event
from aima_lib.infra.store import Document
from aima_lib.names import did_you_mean, nearest
from aima_lib.services import Services
from aima_lib.services.app_story import app_of, calls, stamped
from aima_lib.services.verdict import Entry, has_failed, verdict

ROUTINE = ("inference.request_started", "inference.request_completed", "model.pull_progress")
KINDS = ("service", "instance", "model", "app")
RUNS, AUDITED, INSTANCES, LINES, CORRELATED = 100, 30, 3, 5, 20
AROUND = timedelta(seconds=60)
LONGEST_TEXT = 500
WELL = ("running", "ready", "succeeded")


@dataclass(slots=True)
class Subject:
    """What is explained: the ids its events bear, what they belong to, and which engines and devices have to do with it."""

    kind: str
    id: str
    status: str | None = None
    ids: dict[str, None] = field(default_factory=dict)
    correlations: dict[str, None] = field(default_factory=dict)
    instances: dict[str, None] = field(default_factory=dict)
    next: list[Document] = field(default_factory=list)


class Explanation:
    """One explanation. `may` says which scopes its caller has, `see_run` shows a run the caller may see, `runs` are the newest of those."""

    def __init__(
        self, services: Services, may: Callable[[str], bool], see_run: Callable[[str], Document | None], runs: Sequence[Document]
    ) -> None:
        self._services, self._may, self._see, self._runs = services, may, see_run, runs
        self._notable = [name for name in services.events.types if name not in ROUTINE]
        self._left_out: list[Document] = []
        self._entries: dict[object, Entry] = {}

    async def of(self, subject: str, since: str | None, limit: int) -> Document:
        """The explanation, as event.explain gives it.

        Raises:
            NotFound: nothing is called so; the nearest are named.
            InvalidArgument: `since` is no time.
        """
        oldest = "" if since is None else moment(since)
        about = self._find(subject)
        if about.kind == "app" and self._services.store.peek("app", about.id):
            about.status = (await self._services.apps.get(about.id))["status"]
        self._gather_events(about, limit)
        self._gather_runs(about)
        self._gather_audit(about)
        failed = sorted((entry for entry in self._entries.values() if entry.failed), key=lambda entry: entry.place)
        await self._gather_logs(about, failed)
        self._gather_devices(about, failed)
        if about.kind == "app":
            record = self._services.store.peek("app", about.id)
            about.next = calls(record, about.id, about.status, self._entries.values(), self._runs)
        entries = sorted((entry for entry in self._entries.values() if entry.time >= oldest), key=lambda entry: entry.place)
        cause, why = verdict(entries, frozenset([about.id, *about.ids]))
        kept = self._cut(entries, cause, limit)
        place = None if cause is None else next(number for number, entry in enumerate(kept, 1) if entry is cause)
        return {
            "explanation": _said(about, cause, place, why),
            "subject": {"kind": about.kind, "id": about.id, "status": about.status},
            "cause": {"entry": place, "why": why},
            "timeline": [_shown(number, entry, entry is cause) for number, entry in enumerate(kept, 1)],
            "left_out": self._left_out,
            "next": about.next,
        }

    # What it is about

    def _find(self, name: str) -> Subject:
        store = self._services.store
        if (run := self._see(name)) is not None:
            return self._run(run)
        for kind in KINDS:
            if (found := store.peek(kind, name)) is not None:
                return self._thing(kind, found)
        if any(app_of(run) == name for run in self._runs) or self._services.events.page(None, 1, ("app.*",), name):
            return Subject("app", name, ids={name: None})
        if any(device["id"] == name for device in self._services.devices.devices()):
            calls = [{"unit": "device.health", "arguments": {"device_id": name}}]
            return Subject("device", name, ids={name: None}, next=calls)
        if (whole := self._whole(name)) is not None:
            return Subject("correlation", name, correlations={whole: None})
        known = [document["id"] for kind in KINDS for document in store.find(kind)] + [run["id"] for run in self._runs]
        hint = did_you_mean(name, known) or "it takes the id of a run, a service, a model, an engine's instance, an app or a device"
        calls = [{"unit": "service.list", "arguments": {}}, {"unit": "run.list", "arguments": {}}]
        raise NotFound(f"nothing called {name!r} is on record", hint=hint, next=calls, details={"nearest": nearest(name, known)})

    def _run(self, run: Document) -> Subject:
        about = Subject("run", run["id"], run["status"], {run["id"]: None})
        about.correlations |= {run["correlation_id"]: None} if run.get("correlation_id") else {}
        for key in ("service_id", "instance_id", "model_id"):
            if isinstance(named := run["input"].get(key), str):
                about.ids[named] = None
        if (app_id := app_of(run)) is not None:
            about.ids[app_id] = None
        about.next = [*((run.get("error") or {}).get("next") or []), {"unit": "run.get", "arguments": {"run_id": run["id"]}}]
        return about

    def _thing(self, kind: str, found: Document) -> Subject:
        about = Subject(kind, found["id"], found.get("status"), {found["id"]: None})
        services, instances = self._services.store.find("service"), self._services.store.find("instance")
        if kind == "service":
            mine, about.status = [found], self._services.serving.get(found["id"])["status"]
        else:
            key = {"instance": "instance_id", "model": "model_id"}.get(kind, "id")
            mine = [] if kind == "app" else [service for service in services if service[key] == found["id"]]
        for service in mine:
            about.ids |= {service["id"]: None, service["model_id"]: None}
            about.instances[service["instance_id"]] = None
        running = [
            one["id"] for one in instances if found["id"] in (one["id"], one["service_id"], one["model_id"]) or one["id"] in about.instances
        ]
        about.instances = dict.fromkeys([*about.instances, *running][:INSTANCES])
        about.ids |= about.instances
        about.next = [] if kind == "app" else _calls(kind, found["id"], about)
        return about

    def _whole(self, name: str) -> str | None:
        """The correlation id that a call, a trace or an event goes by."""
        events = self._services.events
        head, _, number = name.partition("-")
        if head == "event" and number.isdecimal() and len(number) < 19:
            event = events.get(int(number))
            return (event["correlation_id"] or name) if event else None
        return name if events.page(None, 1, correlation_id=name) else None

    # Events

    def _gather_events(self, about: Subject, limit: int) -> None:
        log = self._services.events
        for id in about.ids:
            self._add(log.page(None, limit, self._notable, id))
        for whole in about.correlations:
            self._add(log.page(None, limit, self._notable, correlation_id=whole))
        failed = [entry for entry in self._entries.values() if entry.failed]
        for entry in sorted(failed, key=lambda entry: entry.place)[-CORRELATED:]:
            if entry.correlation_id and entry.correlation_id not in about.correlations:
                about.correlations[entry.correlation_id] = None
                self._add(log.page(None, limit, self._notable, correlation_id=entry.correlation_id))
        for entry in list(self._entries.values()):
            self._add_causes(entry)
            named = entry.facts.get("instance_id")
            if isinstance(named, str) and len(about.instances) < INSTANCES:
                about.instances[named] = None

    def _add_causes(self, entry: Entry) -> None:
        for _ in range(CORRELATED):
            head, _, number = (entry.causation_id or "").partition("-")
            if head != "event" or entry.causation_id in self._entries:
                return
            event = self._services.events.get(int(number)) if number.isdecimal() else None
            if event is None:
                self._leave_out("events", f"{entry.causation_id}, which caused {entry.id}, is no longer in the log")
                return
            self._add([event])
            entry = self._entries[f"event-{event['seq']}"]

    def _add(self, events: Iterable[Event]) -> None:
        for event in events:
            id = f"event-{event['seq']}"
            said = ", ".join(
                f"{key} {value}" for key, value in event["payload"].items() if isinstance(value, str | int | float) and value != ""
            )
            self._entries[id] = Entry(
                event["time"], "event", event["type"], event["subject"], said, id, event["correlation_id"], event["causation_id"],
                event["seq"], has_failed(event), facts=event["payload"],
            )  # fmt: skip

    # Runs and calls

    def _gather_runs(self, about: Subject) -> None:
        for run in self._runs:
            named = {value for value in run["input"].values() if isinstance(value, str)}
            named |= {app_of(run) or ""}
            if run["id"] != about.id and run.get("correlation_id") not in about.correlations and not named & set(about.ids):
                continue
            self._add_run(run)
        if about.kind == "run" and (own := self._see(about.id)) is not None:
            self._add_run(own)

    def _add_run(self, run: Document) -> None:
        whole, error = run.get("correlation_id"), run.get("error") or {}
        begun = f"{run['unit']} asked for by {run['caller']}" + (f", attempt {run['attempts']}" if run["attempts"] > 1 else "")
        cause = run.get("causation_id")
        self._entries[run["id"], "begun"] = Entry(run["created_at"], "run", "run.started", run["id"], begun, None, whole, cause)
        if run["finished_at"]:
            ended = f"{run['unit']} {run['status']}" + (f": {error.get('message')}" if error else "")
            failed = run["status"] in ("failed", "interrupted")
            self._entries[run["id"], "ended"] = Entry(
                run["finished_at"], "run", f"run.{run['status']}", run["id"], ended, run["id"], whole, cause, 1 << 62, failed, facts=error
            )

    def _gather_audit(self, about: Subject) -> None:
        if not self._may("audit"):
            self._leave_out("audit", "it takes the scope audit to see who called what")
            return
        for line in self._services.audit.about(list(about.correlations), list(about.ids), AUDITED):
            code = "" if line["code"] in (None, "ok") else f", which was answered {line['code']}"
            text = f"{line['caller']} called {line['unit']}{code}" + (f": {line['arguments']}" if line["arguments"] else "")
            self._entries["audit", line["seq"]] = Entry(
                line["time"], "audit", f"audit.{line['entry']}", line["unit"], text, None, line["correlation_id"], line["causation_id"]
            )

    # Logs and devices

    async def _gather_logs(self, about: Subject, failed: Sequence[Entry]) -> None:
        if not self._may("logs"):
            self._leave_out("logs", "it takes the scope logs to read what engines and apps wrote")
            return
        await self._gather_app_logs(about, failed)
        for id in about.instances:
            ends = [entry for entry in failed if entry.kind == "engine.error" and entry.subject == id]
            try:
                lines = await self._services.engines.logs(id, 400) if ends else []
            except NotFound:
                self._leave_out("logs", f"{id} has left no log")
                continue
            for end in ends[-2:]:
                self._add_lines(id, lines, end)

    async def _gather_app_logs(self, about: Subject, failed: Sequence[Entry]) -> None:
        for id in about.ids:
            ends = [entry for entry in failed if entry.kind.startswith("app.") and entry.subject == id]
            if not ends or self._services.store.peek("app", id) is None:
                continue
            try:
                lines = stamped((await self._services.apps.logs(id, 400))[0])
            except AimaError as error:
                self._leave_out("logs", f"the log of {id} is not to be had: {error}")
                continue
            for end in ends[-2:]:
                self._add_lines(id, lines, end, "app.log")

    def _add_lines(self, id: str, lines: Sequence[str], end: Entry, kind: str = "engine.log") -> None:
        since, until = stamp(end.moment - AROUND), stamp(end.moment + timedelta(milliseconds=1))
        near = [line for line in lines if STAMP.match(line) and since <= line[:24] <= until]
        said = telling(near, any_error=True)
        chosen = [line for line in near if said and said in line][:1]
        for line in dict.fromkeys([*chosen, *near[-LINES:]]):
            time, _, text = line.partition(" ")
            is_telling = line in chosen
            self._entries["log", id, line] = Entry(time, "log", kind, id, text, telling=is_telling)

    def _gather_devices(self, about: Subject, failed: Sequence[Entry]) -> None:
        ends = [entry for entry in failed if entry.kind not in ("device.metrics_alert", "device.health_changed")][-2:]
        instances = [self._services.store.peek("instance", id) for id in about.instances]
        devices = dict.fromkeys(
            [about.id] if about.kind == "device" else ["cpu", *(one["device"] for one in instances if one and one["device"])]
        )
        alarms = self._services.events.page(None, 50, ("device.metrics_alert", "device.health_changed"))
        for end in ends:
            since = stamp(end.moment - AROUND)
            self._add(alarm for alarm in alarms if since <= alarm["time"] <= end.time)
            for id in devices:
                sample = self._services.devices.sample(id, end.moment)
                if sample is None:
                    self._leave_out(
                        "metrics", f"no sample of {id} within {AROUND.seconds} s before {end.time}: they are kept while the host runs"
                    )
                    continue
                self._entries["metric", id, sample["time"]] = Entry(sample["time"], "metric", "device.metrics", id, _measured(sample))

    # What is told

    def _cut(self, entries: Sequence[Entry], cause: Entry | None, limit: int) -> list[Entry]:
        if len(entries) <= limit:
            return list(entries)
        weighty = [entry for entry in entries if entry is not cause and (entry.failed or entry.telling)][-(limit // 2) :]
        rest = [entry for entry in entries if entry is not cause and entry not in weighty]
        room = limit - len(weighty) - (cause is not None)
        chosen = [*weighty, *(rest[-room:] if room > 0 else []), *([cause] if cause else [])]
        self._leave_out("timeline", f"{len(entries) - len(chosen)} older entries; ask with a higher limit, or since")
        return sorted(chosen, key=lambda entry: entry.place)

    def _leave_out(self, source: str, reason: str) -> None:
        entry = {"source": source, "reason": reason}
        if entry not in self._left_out and len(self._left_out) < CORRELATED:
            self._left_out.append(entry)


def _said(about: Subject, cause: Entry | None, place: int | None, why: str) -> str:
    state = f"The {about.kind} {about.id}" + (f" is {about.status}." if about.status else ":")
    if cause is None:
        return f"{state} No cause is known: {why}."
    found = f"entry {place}, {cause.named()} at {cause.time}, because {why}."
    return f"{state} {'Nothing is wrong with it now. What went wrong last' if about.status in WELL else 'Likely cause'}: {found}"


def _shown(number: int, entry: Entry, is_cause: bool) -> Document:
    text = entry.text if len(entry.text) <= LONGEST_TEXT else entry.text[: LONGEST_TEXT - 1] + "…"
    about = {"time": entry.time, "source": entry.source, "kind": entry.kind, "subject": entry.subject, "text": text, "id": entry.id}
    ids = {"correlation_id": entry.correlation_id, "causation_id": entry.causation_id}
    return {"entry": number, "likely_cause": is_cause, **about, **ids}


def _measured(sample: Mapping[str, Any]) -> str:
    used, total = sample["memory_used_bytes"], sample["memory_total_bytes"]
    facts = {
        "memory": f"{used} of {total} bytes in use ({used / total:.0%})" if used is not None and total else None,
        "temperature": None if sample["temperature_celsius"] is None else f"{sample['temperature_celsius']:g} °C",
        "utilization": None if sample["utilization"] is None else f"{sample['utilization']:.0%}",
        "power": None if sample["power_watts"] is None else f"{sample['power_watts']:g} W",
    }
    return ", ".join(f"{name} {text or 'unknown'}" for name, text in facts.items())


def _calls(kind: str, id: str, about: Subject) -> list[Document]:
    if kind == "service":
        calls = [{"unit": "service.logs", "arguments": {"service_id": id}}]
        return calls + ([{"unit": "service.start", "arguments": {"service_id": id}}] if about.status in ("failed", "stopped") else [])
    if kind == "model":
        return [{"unit": "model.verify", "arguments": {"model_id": id}}]
    return [{"unit": "engine.logs", "arguments": {"instance_id": id}}]
