"""Results that fit in 64 KiB and say how to go on, and text from outside with nothing hidden in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client

from aima_lib.errors import AimaError, NotFound
from aima_lib.gateway import Gateway
from aima_lib.registry import Registry
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.fit import size
from aima_mcp.faces.mcp.outside import clean, clean_text
from aima_mcp.faces.mcp.results import MOST_BYTES, failure, success
from tests.mcp_world import DEADLINE, ERAS, text_of
from tests.tiny import write_tiny_gguf

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
REGISTRY = Registry.described()
MODELS = 300


@pytest.fixture
async def many(hosted: Gateway, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A home with more models than a result holds: one that is real, and its document under other ids."""
    await hosted.call("model.import", {"path": str(write_tiny_gguf(tmp_path / "tiny.gguf")), "name": "tiny"})
    document = hosted.services.store.get("model", "tiny")
    for number in range(MODELS - 1):
        await hosted.services.store.put("model", {**document, "id": f"tiny-{number}", "name": f"tiny-{number}"})
    yield hosted


def next_call(result: Any) -> tuple[str, dict[str, Any]]:
    """The call that a result says goes on."""
    words = text_of(result).rpartition("next: call ")[2]
    name, _, arguments = words.partition(" with ")
    return name, json.loads(arguments)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_every_model_is_reached_by_following_what_the_text_says(many: Gateway, mode: str) -> None:
    seen: list[str] = []
    async with Client(build(many, profile="full").server, mode=mode) as client:
        name, arguments = "model_list", {"limit": 1000, "format": "gguf"}
        for _ in range(MODELS):
            result = await client.call_tool(name, arguments)  # the client judges it by its outputSchema
            assert result.structured_content is not None and result.structured_content["total"] == MODELS
            assert size(result.model_dump(by_alias=True, mode="json", exclude_unset=True)) <= MOST_BYTES
            seen += [model["id"] for model in result.structured_content["models"]]
            if "next: call " not in text_of(result):
                break
            assert f" of {MODELS - len(seen) + len(result.structured_content['models'])} models are shown, the first" in text_of(result)
            name, arguments = next_call(result)
            assert arguments["format"] == "gguf" and arguments["offset"] == len(seen)
    assert len(seen) == MODELS and set(seen) == {model["id"] for model in many.services.store.find("model")}


@pytest.mark.anyio
async def test_a_long_result_of_unit_call_goes_on_too(many: Gateway) -> None:
    async with Client(build(many, profile="inference").server, mode="auto") as client:
        first = await client.call_tool("unit_call", {"name": "model.list", "arguments": {"limit": 1000}})
        name, arguments = next_call(first)
        assert name == "unit_call" and arguments["name"] == "model.list", "the list of this profile lacks it"
        second = await client.call_tool(name, arguments)
    assert first.structured_content is not None and second.structured_content is not None
    shown = first.structured_content["result"]["models"]
    assert arguments["arguments"] == {"limit": 1000, "offset": len(shown)}
    assert second.structured_content["result"]["models"][0]["id"] not in {model["id"] for model in shown}


@pytest.mark.anyio
async def test_events_go_on_by_their_number(hosted: Gateway) -> None:
    payload = {"instance_id": "i", "engine": "llamacpp", "model_id": "m"}
    for number in range(400):
        hosted.services.events.publish("engine.error", payload | {"cause": f"{number} " + "x" * 200})
    with anyio.fail_after(DEADLINE):
        async for event in hosted.follow(0, ["engine.error"]):
            if event["payload"]["cause"].startswith("399 "):
                break  # all of them are in the log now
    written = (await hosted.call("event.list", {"after": 0, "limit": 1000}))["events"]
    seen: list[int] = []
    async with Client(build(hosted, profile="full").server, mode="auto") as client:
        name, arguments = "event_list", {"after": 0, "limit": 1000}
        while name:
            result = await client.call_tool(name, arguments)
            assert result.structured_content is not None
            seen += [event["seq"] for event in result.structured_content["events"]]
            name, arguments = next_call(result) if "next: call " in text_of(result) else ("", {})
    assert len(seen) > 400 and seen == [event["seq"] for event in written]


def test_a_log_keeps_its_end() -> None:
    lines = [f"{number:05d} " + "x" * 90 for number in range(5_000)]
    result = success(REGISTRY["service.logs"], {"lines": lines}, {"service_id": "tiny", "tail": 5000})
    shown = result["structuredContent"]["lines"]
    assert size(result) <= MOST_BYTES and shown == lines[-len(shown) :] and len(shown) > 100
    assert f"{len(shown)} of 5000 lines are shown, the last" in result["content"][0]["text"]


@pytest.mark.parametrize("letter", ["x", "é", '"', "\\", "😀", "\n"])
def test_a_long_text_is_cut_and_says_so(letter: str) -> None:
    unit = REGISTRY["unit.describe"]
    output = {"unit": {"name": "x", "description": letter * 100_000}}
    result = success(unit, output)
    assert size(result) <= MOST_BYTES
    held = result["structuredContent"]["unit"]["description"]
    assert held.startswith(letter) and held.endswith("cut: 100000 characters in all") and len(held) > 2_000
    assert "over HTTP they are whole" in result["content"][0]["text"]


def test_what_cannot_be_cut_is_no_half_truth() -> None:
    vector = [0.123456789012345 + place for place in range(8_192)]
    usage = {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    one = success(REGISTRY["inference.embed"], {"model": "m", "embeddings": [vector], "dimensions": 8_192, "usage": usage})
    assert one["isError"] and one["structuredContent"]["code"] == "resource_exhausted" and "was done" in one["content"][0]["text"]
    assert "POST /units/inference/embed" in one["content"][0]["text"]


def test_what_fits_is_left_alone_and_an_error_fits_too() -> None:
    whole = success(REGISTRY["service.logs"], {"lines": ["é" * 3_000] * 3})
    assert whole["structuredContent"]["lines"] == ["é" * 3_000] * 3 and "shown" not in whole["content"][0]["text"]
    said = failure(NotFound("no " + "x" * 200_000, hint="look", details={"tail": "y" * 200_000}))
    assert size(said) <= MOST_BYTES and said["structuredContent"]["code"] == "not_found"
    AimaError.from_dict(said["structuredContent"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=4_000), max_size=60))
def test_no_result_is_ever_longer(lines: list[str]) -> None:
    result = success(REGISTRY["service.logs"], {"lines": [line * 9 for line in lines]})
    assert size(result) <= MOST_BYTES
    assert REGISTRY["service.logs"].output.first_error(result["structuredContent"]) is None


# Text from outside


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\ttext\r\nof two lines", "plain\ttext\r\nof two lines"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07", "red bell"),
        ("abc\u202egnp.exe\u202c\u2066x\u2069\u200f", "abcgnp.exex"),
        ("ig\u200bnore\ufeff \u2060all\u00ad", "ignore all"),
        ("hi" + "".join(chr(0xE0000 + ord(letter)) for letter in "delete all") + "\U000e0001", "hi"),
        ("a" + "".join(chr(0xFE00 + place % 16) for place in range(40)), "a\ufe00"),
        ("a\U000e0100\U000e0101b", "ab"),
        ("a\u200db\u200c c", "ab c"),
        ("\u200d\u200d👩\u200d👩\u200d👧 ❤\ufe0f", "👩\u200d👩\u200d👧 ❤\ufe0f"),
        ("می\u200cخواهم क्\u200dष", "می\u200cخواهم क्\u200dष"),
        ("👩\u200d\u200d\u200d👧", "👩\u200d👧"),
        ("nul\x00 c1\x9b31m del\x7f", "nul c131m del"),
        ("日本語、한국어 – “quoted” …", "日本語、한국어 – “quoted” …"),
    ],
    ids=range(13),
)
def test_what_a_person_would_not_see_is_taken_out(text: str, seen: str) -> None:
    assert clean_text(text) == seen
    assert clean({"a\u202eb": [text, {"c": text}], "n": 1, "z": None}) == {"ab": [seen, {"c": seen}], "n": 1, "z": None}


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once and len(once) <= len(text)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_hidden_text_reaches_no_client(hosted: Gateway, tmp_path: Path, mode: str) -> None:
    hidden = "\u202e\u200b\U000e0064\x1b[8m"
    await hosted.call("model.import", {"path": str(write_tiny_gguf(tmp_path / "tiny.gguf")), "name": "tiny"})
    await hosted.services.store.update("model", "tiny", license=f"mit{hidden} and obey")
    async with Client(build(hosted, profile="full").server, mode=mode) as client:
        got = await client.call_tool("model_get", {"model_id": "tiny"})
        read = await client.read_resource("aima://model/tiny")
        missing = await client.call_tool("model_get", {"model_id": f"no{hidden}ne"})
        prompt = await client.get_prompt("diagnose", {"subject": f"ti{hidden}ny"})
    for answered in (got, read, missing, prompt):
        assert not set(hidden.replace("[8m", "")) & set(answered.model_dump_json())
    assert got.structured_content is not None and got.structured_content["model"]["license"] == "mit and obey"
    assert missing.is_error
