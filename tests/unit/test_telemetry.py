"""OpenTelemetry: one trace from a call to the engine, sent to a collector of ours; nothing of it where nobody asked for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aima_lib import runtime
from aima_lib.errors import AimaError
from aima_lib.infra.home import Home
from tests.tiny import write_tiny_gguf
from tests.unit.test_trace import BAGGAGE, STATE, parent, seen
from tests.world import ROOT, ROOTS, HostProcess, until

WORDS = "planted words that no collector may see"


class Collector:
    """Takes OTLP over HTTP and keeps it. `status` is what it answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if collector.status == 200:
                    assert self.path == "/v1/traces"
                    collector.bodies.append(body)
                    collector.headers.append(dict(self.headers))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def spans(self, trace_id: str | None = None) -> list[dict[str, Any]]:
        """Every span that came: name, trace, id, parent, attributes, failed."""
        found = []
        for body in list(self.bodies):
            for whole in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {pair.key: pair.value.string_value for pair in whole.resource.attributes}
                for scope in whole.scope_spans:
                    found += [
                        {
                            "service": about["service.name"], "name": span.name, "trace": span.trace_id.hex(), "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(), "kind": span.kind, "failed": span.status.message,
                            "attributes": {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes},
                        }
                        for span in scope.spans
                    ]  # fmt: skip
        return [span for span in found if trace_id in (None, span["trace"])]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that sends its traces to the collector; its one service runs an engine that tells what it was sent."""
    folder = tmp_path_factory.mktemp("telemetry")
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "echo_engine.py"}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    config = f'[engines]\nllama_server = "{program}"\n[telemetry]\nendpoint = "{collector.url}"\nservice_name = "box-7"\n'
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b,x-more=1")
    host = HostProcess(Path(sys.executable), folder / "home", ROOT, config=config).start()
    patch.undo()
    with host.client() as client:
        made = client.post("/units/model/import", json={"path": str(write_tiny_gguf(folder / "tiny.gguf")), "name": "tiny"})
        assert made.is_success, made.text
        arguments = {"model_id": "tiny", "name": "echo", "engine": "llama-server"}
        made = client.post("/units/service/create", json=arguments, headers={"traceparent": parent(1)})
        assert made.is_success, made.text
    yield host
    host.stop()


def chat(words: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": words}]}


@pytest.mark.parametrize("path", ["/units/inference/chat", "/v1/chat/completions"])
def test_one_trace_from_a_callers_span_to_the_engine(traced: HostProcess, collector: Collector, path: str) -> None:
    number = 100 + len(path)
    with traced.client() as client:
        given = {"traceparent": parent(number), "tracestate": STATE, "baggage": BAGGAGE}
        answer = client.post(path, json=chat(f"{WORDS} {number}"), headers=given)
        assert answer.is_success, answer.text
    [call, request] = until(lambda: (found := collector.spans(f"{number:032x}"))[1:] and found[::-1], 20, "the spans")
    assert (call["name"], call["parent"], call["kind"]) == ("inference.chat", f"{number:016x}", 2), "a server's span, the caller's child"
    assert (request["name"], request["parent"], request["kind"]) == ("chat tiny", call["id"], 3)
    told = request["attributes"]
    assert (told["gen_ai.operation.name"], told["gen_ai.request.model"]) == ("chat", "tiny")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (1, 1)
    assert call["attributes"]["aima.caller"] == "owner" and call["service"] == "box-7"
    [came] = until(lambda: seen(traced, f"{WORDS} {number}"), 10, "the engine's log")
    assert came == {"traceparent": f"00-{number:032x}-{request['id']}-01", "tracestate": STATE, "baggage": BAGGAGE}


def test_a_run_is_a_span_of_the_call_that_began_it_and_both_know_the_trace(traced: HostProcess, collector: Collector) -> None:
    spans = until(
        lambda: (found := {span["name"]: span for span in collector.spans(f"{1:032x}")}).get("service.create") and found, 20, "it"
    )
    run, call = spans["run service.create"], spans["service.create"]
    assert (call["parent"], run["parent"]) == (f"{1:016x}", call["id"])
    with traced.client() as client:
        [record] = client.post("/units/run/list", json={"unit": "service.create"}).json()["runs"]
        [imported] = client.post("/units/run/list", json={"unit": "model.import"}).json()["runs"]
    assert run["attributes"]["aima.run_id"] == record["id"]
    assert record["trace_id"] == f"{1:032x}" == run["attributes"]["aima.correlation_id"]
    assert imported["trace_id"] in {span["trace"] for span in collector.spans()}, "a trace of our own where nobody named one"


def test_how_a_call_failed_is_told_by_its_code_and_no_words(traced: HostProcess, collector: Collector) -> None:
    with traced.client() as client:
        client.post("/units/inference/chat", json=chat(WORDS) | {"model": WORDS}, headers={"traceparent": parent(30)})
        client.post("/units/unit/call", json={"name": "model.get", "arguments": {"model_id": WORDS}}, headers={"traceparent": parent(31)})
        client.post("/units/unit/call", json={"name": "planted.words", "arguments": {}}, headers={"traceparent": parent(32)})
        client.post("/units/model/list", json={}, headers={"traceparent": parent(33).removesuffix("1") + "0"})
    until(lambda: collector.spans(f"{32:032x}"), 20, "the spans")
    [failed] = collector.spans(f"{30:032x}")
    assert (failed["failed"], failed["attributes"]["error.type"]) == ("not_found", "not_found")
    assert [span["name"] for span in collector.spans(f"{31:032x}")] == ["model.get", "unit.call"], "a call within is a span within"
    assert collector.spans(f"{33:032x}") == [], "its caller samples it not"
    assert not [body for body in collector.bodies if b"planted" in body]
    assert {(sent["x-tenant"], sent["x-more"]) for sent in collector.headers} == {("a b", "1")}


def test_a_collector_that_is_away_costs_nobody_an_answer(traced: HostProcess, collector: Collector) -> None:
    collector.status = 503
    try:
        with traced.client() as client:
            assert client.post("/units/inference/chat", json=chat("hello")).is_success
            until(lambda: "spans are lost: HTTP 503" in traced.log.read_text(encoding="utf-8"), 20, "the warning")
            collector.status = 200
            assert client.post("/units/inference/chat", json=chat("again"), headers={"traceparent": parent(40)}).is_success
        until(lambda: collector.spans(f"{40:032x}"), 20, "spans again")
        until(lambda: "takes spans again, after" in traced.log.read_text(encoding="utf-8"), 20, "the all-clear")
    finally:
        collector.status = 200


BLOCKED = "import sys; sys.modules['opentelemetry'] = None\n"


@pytest.mark.parametrize("blocked", [True, False])
def test_nothing_of_it_is_imported_where_nobody_asked(home: Home, blocked: bool) -> None:
    script = f"""
import sys
from aima_lib import Aima
with Aima({str(home.path)!r}) as aima:
    aima.device.detect()
print([name for name in sys.modules if name.startswith('opentelemetry.')])
"""
    done = subprocess.run([sys.executable, "-c", (BLOCKED if blocked else "") + script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_without_the_extra_the_setting_is_refused_plainly(home: Home) -> None:
    (home.path / "config.toml").write_text('[telemetry]\nendpoint = "http://127.0.0.1:4318"\n' + ROOTS, encoding="utf-8")
    script = f"from aima_lib import Aima\nAima({str(home.path)!r})"
    done = subprocess.run([sys.executable, "-c", BLOCKED + script], capture_output=True, text=True, check=False)
    assert "[telemetry] endpoint is set, and opentelemetry" in done.stderr and done.returncode == 1, done.stderr


@pytest.mark.anyio
async def test_a_post_goes_where_a_get_may_go_and_follows_no_redirect(collector: Collector) -> None:
    from aima_lib.infra.egress import Egress

    egress = Egress(endpoints=lambda: [collector.url])
    before, collector.status = len(collector.bodies), 307
    try:
        assert await egress.post(f"{collector.url}/v1/traces", {}, b"x") == 307
    finally:
        collector.status = 200
    assert len(collector.bodies) == before
    closed = Egress()
    with pytest.raises(AimaError, match="is not a public place"):
        await closed.post(f"{collector.url}/v1/traces", {}, b"x")
    await egress.close()
    await closed.close()


@pytest.mark.anyio
async def test_the_owner_says_which_share_is_sent_and_which_variable_has_the_headers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=usual")
    monkeypatch.setenv("COLLECTOR_HEADERS", "x-tenant=mine")
    taker = Collector()
    for ratio in (0, 1):
        settings = f'[telemetry]\nendpoint = "{taker.url}"\nsample_ratio = {ratio}\nservice_name = "share-{ratio}"\n'
        (home.path / "config.toml").write_text(settings + 'headers_env = "COLLECTOR_HEADERS"\n' + ROOTS, encoding="utf-8")
        async with runtime.host(home) as gateway:
            for _ in range(5):
                await gateway.call("device.info")
    taker.close()
    assert [span["service"] for span in taker.spans() if span["name"] == "device.info"] == ["share-1"] * 5
    assert {headers["x-tenant"] for headers in taker.headers} == {"mine"} and "share-0" not in str(taker.spans())
