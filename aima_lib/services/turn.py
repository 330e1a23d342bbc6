"""One request on its way through an engine, from its beginning to its end: what is told of it, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from aima_lib.errors import AimaError, Unavailable
from aima_lib.infra import lineage, trace
from aima_lib.infra.events import Events
from aima_lib.infra.pool import Line, Lost
from aima_lib.names import tag
from aima_lib.services.allowance import Charge, caller_of
from aima_lib.services.answer import Answer
from aima_lib.services.lane import Seat
from aima_lib.services.limits import DEVICE_SECONDS, TOKENS
from aima_lib.services.routes import Endpoint
from aima_lib.services.serving import ServingService

OPERATIONS = {
    "chat": "chat",
    "complete": "text_completion",
    "embed": "embeddings",
}  # as OpenTelemetry names them; what it has no name for goes by ours
USED = {"input": "prompt_tokens", "output": "completion_tokens"}


class Turn:
    """A request that waits for its caller's turn, and is then answered by `endpoint` over `line`. A context, and told of as one: in the
    events, the metrics and the trace, none of which has the prompt. `charge` is told what it took, however it ends.

    data: the request as bytes, where it goes on as it came.
    """

    line: Line
    _seat: Seat
    _span: trace.Span

    def __init__(
        self, events: Events, serving: ServingService, endpoint: Endpoint, task: str, path: str, request: Mapping[str, Any],
        charge: Charge, data: bytes | None = None,
    ) -> None:  # fmt: skip
        self.endpoint, self.answer = endpoint, Answer(f"{task}-{tag()}")
        self._events, self._turns, self._asked = events, serving.turns, endpoint
        self._task, self._path, self._request, self._data, self._charge = task, path, request, data, charge
        self._meter = serving.meters[endpoint.service["id"]] if endpoint.service else None
        self._lane = self._turns.lane(endpoint)
        around = lineage.current()  # a face that passes it on itself has called nothing
        self._lineage = lineage.within((around and around.ids[1]) or lineage.call_id())
        self._spanning: AbstractContextManager[trace.Span] | None = None

    async def __aenter__(self) -> Self:
        """Raises AimaError: as `Turns.begun`."""
        self._begin()
        begun = False
        try:
            caller = caller_of(self._charge)
            self._seat, self.line = await self._turns.begun(self._lane, caller, self._path, self._request, self._data)
            begun = True
        except AimaError as error:
            if (told := self._told(error)) is not error:
                raise told from error
            raise
        finally:
            if not begun:
                self._end(sys.exc_info()[1])
        self.endpoint = self._seat.endpoint
        self.answer.instance_id, self.answer.sent = self.endpoint.instance["id"], self._seat.since
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._turns.ended(self._lane, self._seat, self.line)
        told = None if error is None else self._told(error)
        self._end(told)
        if told is not None and told is not error:
            raise told from error

    def _begin(self) -> None:
        self._lineage.__enter__()
        endpoint, operation = self._asked, OPERATIONS.get(self._task, self._task)
        if trace.is_made():
            about = {"gen_ai__operation__name": operation, "gen_ai__request__model": endpoint.model}
            ids = {"aima__request_id": self.answer.id, "aima__instance_id": endpoint.instance["id"]}
            self._spanning = trace.span(f"{operation} {endpoint.model}", asks=True, **about, **ids)
            self._span = self._spanning.__enter__()
        self._publish("inference.request_started")
        if self._meter:
            self._meter.open += 1

    def _end(self, error: BaseException | None) -> None:
        answer, code = self.answer, None if error is None else error.code if isinstance(error, AimaError) else "cancelled"
        at = time.monotonic()
        self._charge(TOKENS, answer.cost(self._request, code == "cancelled"))
        self._charge(DEVICE_SECONDS, answer.busy_seconds(at))
        duration = round((at - answer.began) * 1000, 1)
        if self._meter:
            self._meter.open -= 1
            self._meter.record(answer.ttft_ms, answer.speed, code not in (None, "cancelled"))
        if code is None:
            self._publish("inference.request_completed", duration_ms=duration, tokens=answer.tokens)
        else:
            self._publish("inference.request_failed", duration_ms=duration, code=code)
        if self._spanning is not None:
            if error is None:
                usage = answer.usage or {}
                counts = {f"gen_ai__usage__{way}_tokens": usage.get(key) for way, key in USED.items()}
                self._span.set(**counts, aima__ttft_ms=answer.ttft_ms)
            self._spanning.__exit__(None if error is None else type(error), error, None)
        self._lineage.__exit__()

    def _publish(self, type: str, **more: Any) -> None:
        asked, id = self._asked, self.answer.instance_id or self._asked.instance["id"]
        who = {"request_id": self.answer.id, "model": asked.model, "task": self._task, "instance_id": id, **more}
        who["service_id"] = asked.service["id"] if asked.service else None
        self._events.publish(type, who, subject=id, gather=True)

    def _told(self, error: BaseException) -> BaseException:
        """The error as it is told: with the calls that lead on, where it has none of its own."""
        if isinstance(error, Lost):
            error = Unavailable(f"{self.endpoint.instance['id']} went away in the middle of its answer: {error}")
        if not isinstance(error, Unavailable) or error.next:
            return error
        service, instance = self._asked.service, self._asked.instance
        look = {"unit": "service.status", "arguments": {"service_id": service["id"]}} if service else None
        call = look or {"unit": "event.explain", "arguments": {"subject": instance["id"]}}
        hint = "ask again: a service whose engine died is started anew"
        return type(error)(str(error), hint=hint, next=[call], details=error.details)
