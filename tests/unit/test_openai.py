"""OpenAI's API in front of a real engine: what passes through, what is refused, and what a client that leaves gives back."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from aima_mcp.faces.openai.asked import Wrong, checked
from aima_mcp.faces.openai.routes import ROUTES
from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess, agreed_to, until, within

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8}
# llama.cpp looks once a second whether the client of an answer that is not streamed is still there.
FREED_WITHIN_SECONDS = {True: 0.5, False: 2.0}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that serves `tiny` for text and `vectors` for embeddings; the model `idle` is there and nothing serves it."""
    folder = tmp_path_factory.mktemp("openai")
    weights = [write_tiny_gguf(folder / f"{name}.gguf", seed=seed) for seed, name in enumerate(("tiny", "idle"))]
    process = HostProcess(Path(sys.executable), folder / "home", ROOT, "[inference]\nload_on_request = false\n").start()
    with process.client() as client:
        for path in weights:
            client.post("/units/model/import", json={"path": str(path), "name": path.stem}).raise_for_status()
        for name, options in (("tiny", {"parallel": 1}), ("vectors", {"embedding": True})):
            body = {"model_id": "tiny", "name": name, "engine": "llamacpp", "options": options}
            client.post("/units/service/create", json=body).raise_for_status()
    yield process
    process.stop()


@pytest.fixture
def http(host: HostProcess) -> Iterator[httpx.Client]:
    with host.client() as client:
        yield client


def refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text
    assert set(error) == {"message", "type", "param", "code"} and response.headers["x-request-id"]
    return str(error["message"])


def chunks(response: httpx.Response) -> list[Any]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]


def published(http: httpx.Client, kind: str, request_id: str) -> dict[str, Any]:
    """The event of a request, as soon as it is published."""

    def find() -> Any:
        rows = http.get("/units/event/list", params={"after": 0, "types": f"inference.{kind}", "limit": 500}).json()["events"]
        return next((row["payload"] for row in rows if row["payload"]["request_id"] == request_id), None)

    found: dict[str, Any] = until(find, 10, f"{kind} of {request_id}")
    return found


@pytest.mark.engine
def test_the_openai_sdk_works(host: HostProcess) -> None:
    with openai.OpenAI(base_url=f"{host.url}/v1", api_key=host.home.key(), http_client=httpx.Client(trust_env=False)) as client:
        assert {model.id for model in client.models.list()} == {"tiny", "vectors"}
        assert client.models.retrieve("tiny").owned_by == "aima"
        whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=5)
        assert whole.usage is not None and whole.usage.completion_tokens == 5 and whole.model == "tiny"
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
        parts = list(stream)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert parts[-1].usage is not None and parts[-1].usage.completion_tokens == 5
        assert client.completions.create(model="tiny", prompt="once", max_tokens=3).choices[0].text
        vectors = client.embeddings.create(model="vectors", input=["a", "b"])
        assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == 64
        with pytest.raises(openai.NotFoundError, match="did you mean tiny"):
            client.chat.completions.create(model="tyni", messages=MESSAGES)


@pytest.mark.engine
def test_what_is_answered_is_recorded_without_the_prompt(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=CHAT)
    done = published(http, "request_completed", whole.headers["x-request-id"])
    assert done["tokens"] == whole.json()["usage"]["total_tokens"] and "hello" not in json.dumps(done)
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert chunks(stream)[-1] == "[DONE]"
    told = published(http, "request_completed", stream.headers["x-request-id"])
    assert told["tokens"] == done["tokens"], "counted though the client did not ask for usage"
    metrics = http.get("/metrics").text
    assert 'aima_calls_total{unit="inference.chat",code="ok"}' in metrics and 'aima_service_ttft_p50_ms{service="tiny"}' in metrics


@pytest.mark.engine
def test_what_cannot_be_says_why(http: httpx.Client) -> None:
    chat = "/v1/chat/completions"
    assert "did you mean tiny" in refused(http.post(chat, json=CHAT | {"model": "tinny"}), 404, "model_not_found", "model")
    idle = http.post(chat, json=CHAT | {"model": "idle"})
    assert 'service.create {"model_id": "idle"}' in refused(idle, 503, "failed_precondition", "model")
    assert idle.headers["x-should-retry"] == "false", "trying again will not load it"
    assert "not embed" in refused(http.post("/v1/embeddings", json={"model": "tiny", "input": "a"}), 503, "failed_precondition", "model")
    assert "temperature" in refused(http.post(chat, json=CHAT | {"temprature": 1}), 400, "unknown_parameter", "temprature")
    assert "tokens" in refused(
        http.post(chat, json=CHAT | {"messages": [{"role": "user", "content": "word " * 3000}]}), 400, "invalid_argument"
    )
    refused(http.post(chat, json=CHAT | {"messages": 5}), 400, "invalid_argument", "messages")
    refused(http.post(chat, content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_argument")
    refused(http.post(chat, content=b"{}", headers={"Content-Type": "text/plain"}), 415, "invalid_argument")
    refused(http.get(chat), 405, "invalid_argument")
    refused(http.post("/v1/audio/translations", json={}), 404, "not_found")
    refused(http.get("/v1/models/idle"), 404, "model_not_found", "model")


@pytest.mark.engine
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(host: HostProcess, http: httpx.Client, stream: bool) -> None:
    endless = CHAT | {"max_tokens": 100_000, "n_predict": 100_000, "stream": stream, "repeat_last_n": 0, "messages": MESSAGES}
    before = http.get("/units/event/list", params={"limit": 1}).json()["last"]
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=endless) as response:
            next(response.iter_lines())
    else:
        body, to = json.dumps(endless).encode(), httpx.URL(host.url)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {host.home.key()}\r\n"
        with socket.create_connection((to.host, to.port or 80)) as leaving:
            leaving.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: http.get("/units/service/status?service_id=tiny").json()["queue"]["under_way"], what="its turn")
    with within(FREED_WITHIN_SECONDS[stream]):
        with within(0.5):  # the connection to the engine is closed at once
            until(lambda: _cancelled(http, before), what="the end of the request")
        assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}).is_success, "the only slot is free"


@pytest.mark.engine
def test_a_key_sees_its_own_models_and_its_answer_ends_with_it(host: HostProcess, http: httpx.Client) -> None:
    made = agreed_to(http, "key/create", {"name": "guest", "scopes": ["inference"], "models": ["vectors"]})
    tiny = agreed_to(http, "key/create", {"name": "guest", "scopes": ["inference"], "models": ["tiny"]})
    before = http.get("/units/event/list", params={"limit": 1}).json()["last"]
    with httpx.Client(base_url=host.url, headers={"x-api-key": made["secret"]}, trust_env=False) as guest:
        assert [row["id"] for row in guest.get("/v1/models").json()["data"]] == ["vectors"]
        assert guest.post("/v1/embeddings", json={"model": "vectors", "input": "a"}).is_success
        refused(guest.post("/v1/chat/completions", json=CHAT | {"model": "nothing"}), 403, "permission_denied")
        refused(guest.get("/v1/models/idle"), 404, "model_not_found", "model")
    endless = CHAT | {"max_tokens": 100_000, "n_predict": 100_000, "stream": True, "repeat_last_n": 0}
    with httpx.Client(base_url=host.url, headers={"x-api-key": tiny["secret"]}, trust_env=False) as guest:
        with guest.stream("POST", "/v1/chat/completions", json=endless) as response:
            lines = response.iter_lines()
            next(lines)
            agreed_to(http, "key/revoke", {"key_id": tiny["key"]["id"]})
            with within(1):
                assert "data: [DONE]" not in list(lines)
        assert "was revoked" in refused_plainly(guest.get("/v1/models"))
    until(lambda: _cancelled(http, before), what="the end of the request")
    assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}).is_success, "the only slot is free"


def refused_plainly(response: httpx.Response) -> str:
    """A refusal at the entrance, before the request has an id."""
    assert response.status_code == 401
    return str(response.json()["error"]["message"])


def _cancelled(http: httpx.Client, after: int) -> bool:
    rows = http.get("/units/event/list", params={"after": after, "types": "inference.request_failed"}).json()["events"]
    return any(row["payload"]["code"] == "cancelled" for row in rows)


def test_fields_are_known_or_refused() -> None:
    request = {"model": "m", "messages": [], "max_completion_tokens": 4, "min_p": 0.1, "user": "me"}
    assert checked(ROUTES["/v1/chat/completions"], request) == {"model": "m", "messages": [], "max_tokens": 4, "min_p": 0.1, "user": "me"}
    assert checked(ROUTES["/v1/chat/completions"], request | {"max_tokens": 2})["max_tokens"] == 2
    wrong: list[tuple[Any, str | None]] = [
        ([], None),
        ({"messages": []}, "model"),
        ({"model": "", "messages": []}, "model"),
        ({"model": 3, "messages": []}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": [], "stream": "yes"}, "stream"),
        ({"model": "m", "messages": [], "id_slot": 0}, "id_slot"),
        ({"model": "m", "messages": [], "lora": []}, "lora"),
        ({"model": "m", "messages": [], "prompt": ""}, "prompt"),
    ]
    for body, param in wrong:
        with pytest.raises(Wrong) as refusal:
            checked(ROUTES["/v1/chat/completions"], body)
        assert refusal.value.param == param
