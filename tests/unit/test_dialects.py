"""OpenAI's responses and Anthropic's messages, spoken by their makers' own clients to a real engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess, agreed_to, until, within

pytestmark = pytest.mark.engine
MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
MESSAGE: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "messages": MESSAGES}
ENDLESS = {"n_predict": 100_000, "repeat_last_n": 0, "ignore_eos": True}
SMALL = "[budgets]\ntokens_per_hour = 100000\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that serves `tiny`, one request at a time."""
    folder = tmp_path_factory.mktemp("dialects")
    weights = write_tiny_gguf(folder / "tiny.gguf")
    process = HostProcess(Path(sys.executable), folder / "home", ROOT, SMALL).start()
    with process.client() as client:
        client.post("/units/model/import", json={"path": str(weights), "name": "tiny"}).raise_for_status()
        body = {"model_id": "tiny", "name": "tiny", "engine": "llamacpp", "options": {"parallel": 1}}
        client.post("/units/service/create", json=body).raise_for_status()
    yield process
    process.stop()


@pytest.fixture
def http(host: HostProcess) -> Iterator[httpx.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def claude(host: HostProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=host.url, api_key=host.home.key(), http_client=httpx2.Client(trust_env=False), max_retries=0
    ) as client:
        yield client


@pytest.fixture
def gpt(host: HostProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{host.url}/v1", api_key=host.home.key(), http_client=httpx.Client(trust_env=False), max_retries=0
    ) as client:
        yield client


def test_anthropics_client_asks_streams_counts_and_lists(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**MESSAGE)
    assert (whole.role, whole.stop_reason, whole.usage.output_tokens) == ("assistant", "max_tokens", 5)
    assert isinstance(whole.content[0], anthropic.types.TextBlock) and whole.content[0].text
    with claude.messages.stream(**MESSAGE) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.usage.output_tokens == 5 and final.stop_reason == "max_tokens"
    counted = claude.messages.count_tokens(model="tiny", messages=MESSAGES)
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) > 0
    assert [(model.id, model.type, model.display_name) for model in claude.models.list()] == [("tiny", "model", "tiny")]
    assert claude.models.retrieve("tiny").id == "tiny"


def test_anthropics_client_knows_our_errors(claude: anthropic.Anthropic, host: HostProcess) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean tiny") as absent:
        claude.messages.create(**MESSAGE | {"model": "tinny"})
    body: Any = absent.value.body
    assert body["type"] == "error" and body["error"]["type"] == "not_found_error" and body["request_id"] == absent.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="temprature"):
        claude.messages.create(**MESSAGE, extra_body={"temprature": 1})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens is missing"):
        claude.post("/v1/messages", body={"model": "tiny", "messages": MESSAGES}, cast_to=object)
    with pytest.raises(anthropic.BadRequestError, match="runs on its vendor's machines"):
        claude.messages.create(**MESSAGE, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with (
        anthropic.Anthropic(base_url=host.url, api_key="aima-nobody", http_client=httpx2.Client(trust_env=False), max_retries=0) as nobody,
        pytest.raises(anthropic.AuthenticationError),
    ):
        nobody.messages.create(**MESSAGE)


def test_openais_client_gets_responses_whole_and_streamed(gpt: openai.OpenAI) -> None:
    whole = gpt.responses.create(model="tiny", input="hello", max_output_tokens=5)
    assert (whole.status, whole.object, whole.model) == ("incomplete", "response", "tiny")
    assert whole.incomplete_details is not None and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output_text and whole.usage is not None and whole.usage.output_tokens == 5
    with gpt.responses.stream(model="tiny", input=MESSAGES, max_output_tokens=5) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete" and "response.output_text.delta" in kinds
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )
    with pytest.raises(openai.NotFoundError, match="did you mean tiny"):
        gpt.responses.create(model="tinny", input="hello")
    with pytest.raises(openai.BadRequestError, match="nothing of a conversation is kept here"):
        gpt.responses.create(model="tiny", input="hello", previous_response_id="resp_1")


def test_what_a_model_cannot_do_it_says(gpt: openai.OpenAI) -> None:
    for ask in (
        lambda: gpt.images.generate(prompt="a cat", model="tiny"),
        lambda: gpt.audio.speech.create(model="tiny", voice="alloy", input="hello"),
    ):
        with pytest.raises(openai.APIStatusError, match="tiny can chat, complete, not"):
            ask()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", MESSAGE),
        ("/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 5}),
    ],
)
def test_what_is_answered_is_recorded_and_charged(host: HostProcess, http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    made = agreed_to(http, "key/create", {"name": "metered", "scopes": ["inference"]})
    with httpx2.Client(base_url=host.url, headers={"x-api-key": made["secret"]}, trust_env=False, timeout=60) as guest:
        answers = [guest.post(path, json=body).raise_for_status()]
        with guest.stream("POST", path, json=body | {"stream": True}) as stream:
            text = "".join(stream.iter_text())
        answers.append(stream)
        usage = answers[0].json()["usage"]
        tokens = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) + usage["output_tokens"]
        assert "hello" not in text.partition("delta")[0]
        for answer in answers:
            id = answer.headers["x-request-id"]
            assert answer.headers["request-id"] == id
            told = until(lambda id=id: published(http, id), 10, f"the event of {id}")  # type: ignore[misc]
            assert told["tokens"] == tokens and "hello" not in json.dumps(told)
        assert guest.get("/caller").json()["usage"]["tokens_per_hour"] == 2 * tokens


def published(http: httpx.Client, id: str) -> Any:
    rows = http.get("/units/event/list", params={"after": 0, "types": "inference.request_completed", "limit": 500}).json()["events"]
    return next((row["payload"] for row in rows if row["payload"]["request_id"] == id), None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", MESSAGE | {"max_tokens": 100_000}),
        ("/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 100_000, "ignore_eos": True, "repeat_last_n": 0}),
    ],
)
def test_a_client_that_leaves_frees_its_slot(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    before = http.get("/units/event/list", params={"limit": 1}).json()["last"]
    with http.stream("POST", path, json=body | {"stream": True}) as response:
        next(response.iter_lines())

    def ended() -> bool:
        wanted = {"after": before, "types": ["inference.request_failed", "inference.request_completed"]}
        return bool(http.get("/units/event/list", params=wanted).json()["events"])

    with within(0.5):
        until(ended, what="the end of the request")
        assert http.post("/v1/messages", json=MESSAGE | {"max_tokens": 1}).is_success, "the only slot is free"


def test_a_key_for_other_models_and_two_keys_at_once_are_refused(host: HostProcess, http: httpx.Client) -> None:
    made = agreed_to(http, "key/create", {"name": "reader", "scopes": ["read"]})
    with httpx.Client(base_url=host.url, trust_env=False) as guest:
        refused = guest.post("/v1/messages", json=MESSAGE, headers={"x-api-key": made["secret"]})
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        both = {"x-api-key": made["secret"], "Authorization": f"Bearer {host.home.key()}"}
        assert guest.get("/v1/models", headers=both).status_code == 401
        same = {"x-api-key": host.home.key(), "Authorization": f"Bearer {host.home.key()}"}
        assert guest.get("/v1/models", headers=same).status_code == 200
