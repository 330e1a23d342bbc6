"""Spans over OpenTelemetry, sent to a collector as OTLP over HTTP: the extra `aima[otel]`, imported only where [telemetry] asks for it.

Whose parent a span is says the W3C context at hand, so it makes no difference whether it was begun here or by whoever called. Spans are
sent from the loop, through the one way out; a collector that is away costs spans, counted and logged, and nobody's time.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import anyio
import anyio.abc
from anyio import to_thread
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aima_lib.errors import AimaError
from aima_lib.infra import trace
from aima_lib.infra.egress import Again, Egress

QUEUE, BATCH, EVERY_SECONDS, LAST_SECONDS = 8192, 512, 2.0, 3.0
W3C = TraceContextTextMapPropagator()
_inside: ContextVar[bool] = ContextVar("inside", default=False)
log = logging.getLogger(__name__)


class Telemetry:
    """The tracer of one host. `run` sends what was traced."""

    def __init__(self, settings: Mapping[str, Any], egress: Egress, version: str) -> None:
        self._url = settings["endpoint"].rstrip("/") + "/v1/traces"
        self._headers = _headers(os.environ.get(settings["headers_env"], ""))
        self._egress, self._queue = egress, _Queue()
        resource = Resource({"service.name": settings["service_name"], "service.version": version})
        sampler = ParentBased(TraceIdRatioBased(settings["sample_ratio"]))
        provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._queue)
        self._tracer = provider.get_tracer("aima", version)
        self._lost = 0

    def span(self, name: str, *, asks: bool = False, **attributes: str | int | float | None) -> AbstractContextManager[trace.Span]:
        """See Tracer.span."""
        parent = W3C.extract(trace.headers(), Context())
        kind = SpanKind.CLIENT if asks else SpanKind.INTERNAL if _inside.get() else SpanKind.SERVER
        return _Span(self._tracer.start_span(name, parent, kind, _named(attributes)))

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send spans every few seconds until cancelled, and then what is left."""
        task_status.started()
        try:
            while True:
                await anyio.sleep(EVERY_SECONDS)
                await self._send_all()
        finally:
            with anyio.move_on_after(LAST_SECONDS, shield=True):
                await self._send_all()
                await self._egress.close()

    async def _send_all(self) -> None:
        while spans := self._queue.take():
            try:
                body = await to_thread.run_sync(_encoded, spans)
                status = await self._egress.post(self._url, {"Content-Type": "application/x-protobuf", **self._headers}, body)
            except (AimaError, OSError) as error:
                self._say_lost(len(spans), str(error), again=isinstance(error, Again))
                return
            if status >= 300:
                self._say_lost(len(spans), f"HTTP {status}", again=False)
                return
            if self._lost:
                log.warning("the collector takes spans again, after %s were lost", self._lost)
            self._lost = 0

    def _say_lost(self, count: int, why: str, *, again: bool) -> None:
        if not self._lost:
            log.warning("spans are lost: %s%s", why, "; it is tried again" if again else "")
        self._lost += count


class _Queue(SpanProcessor):
    """What has ended and is to be sent; the oldest go when there is no more room."""

    def __init__(self) -> None:
        self._spans: deque[ReadableSpan] = deque(maxlen=QUEUE)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        return [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]


class _Span:
    """A span around a block: how the block ends is how it ends, told by the error's code and never by its words."""

    def __init__(self, span: Any) -> None:
        self._span, self._inside = span, ExitStack()

    def set(self, **attributes: str | int | float | None) -> None:
        self._span.set_attributes(_named(attributes))

    def __enter__(self) -> Self:
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(self._span, Context()))
        baggage = {key: text for key, text in trace.headers().items() if key == trace.BAGGAGE}
        self._inside.enter_context(trace.carried(carrier | baggage))
        before = _inside.set(True)
        self._inside.callback(_inside.reset, before)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._inside.close()
        if kind is not None:
            code = error.code if isinstance(error, AimaError) else "cancelled" if issubclass(kind, _cancelled()) else kind.__name__
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()


def _cancelled() -> type[BaseException]:
    return anyio.get_cancelled_exc_class()


def _encoded(spans: Sequence[ReadableSpan]) -> bytes:
    body: bytes = encode_spans(spans).SerializeToString()
    return body


def _named(attributes: Mapping[str, str | int | float | None]) -> dict[str, str | int | float]:
    return {key.replace("__", "."): value for key, value in attributes.items() if value is not None}


def _headers(text: str) -> dict[str, str]:
    """As OTEL_EXPORTER_OTLP_HEADERS writes them: key=value, escaped as in a URL, with commas between."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {key.strip(): unquote(value.strip()) for key, _, value in pairs}
