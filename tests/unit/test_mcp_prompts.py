"""Prompts: what they say names tools that exist; and what completes their arguments is what lives now."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from aima_lib.door import Caller
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry, SchemaError
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.completions import Completions, fitting
from aima_mcp.faces.mcp.prompts import LONGEST, Prompts, text_of
from aima_mcp.faces.mcp.results import wire_name
from aima_mcp.faces.profiles import DEFAULT, profiles
from tests.mcp_world import ERAS
from tests.tiny import write_tiny_gguf
from tests.workshop import unit, write_handlers, write_schemas

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]
REGISTRY = Registry.described()
PROMPTS = {prompt.action: prompt for prompt in REGISTRY.of("prompt")}
CALLABLE = {found.name: found for found in REGISTRY.of("command", "query")}
DOMAINS = "|".join(sorted({found.domain for found in CALLABLE.values()}))


@pytest.fixture
async def client(hosted: Gateway, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    for name in ("tiny", "tin-whistle"):
        await hosted.call("model.import", {"path": str(write_tiny_gguf(tmp_path / f"{name}.gguf")), "name": name})
    async with Client(build(hosted).server, mode=request.param) as connected:
        yield connected


def said(found: types.GetPromptResult) -> str:
    [message] = found.messages
    assert message.role == "user" and isinstance(message.content, types.TextContent)
    return message.content.text


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_names_tools_that_the_default_list_has(name: str) -> None:
    """A word in backticks is a tool or one of its arguments; a dotted one is a unit, for unit_call."""
    text = PROMPTS[name].definition["text"]
    listed = {wire_name(found): CALLABLE[found] for found in profiles(REGISTRY, {})[DEFAULT].units}
    words = set(re.findall(r"`([^`]+)`", text))
    tools = words & set(listed)
    arguments = {key for tool in tools for key in listed[tool].definition["inputSchema"]["properties"]}
    assert tools and words - tools <= arguments | {"repo"}, f"no tool of the profile {DEFAULT}: {words - tools - arguments}"
    for dotted in re.findall(rf"\b(?:{DOMAINS})\.[a-z_]+\b", text):
        assert dotted in CALLABLE, dotted
        assert "unit_call" in tools or wire_name(dotted) in listed, f"{dotted} cannot be reached"
    assert not re.findall(rf"\b(?:{DOMAINS})_[a-z_]+\b", re.sub(r"`[^`]+`|[a-z_]+_bytes", "", text)), "a tool is written in backticks"


@pytest.mark.parametrize("name", PROMPTS)
async def test_its_examples_are_true(name: str) -> None:
    for example in PROMPTS[name].definition["examples"]:
        if "error" in example:
            with pytest.raises(Exception) as raised:
                text_of(PROMPTS[name], example["input"])
            assert getattr(raised.value, "code", None) == example["error"]
        else:
            assert example["output"] in text_of(PROMPTS[name], example["input"])


@pytest.mark.parametrize("client", ERAS, indirect=True)
async def test_prompts_are_listed_and_filled_in(client: Client) -> None:
    listed = (await client.list_prompts()).prompts
    assert [found.name for found in listed] == ["build_pipeline", "deploy_model", "diagnose", "free_memory"] == sorted(PROMPTS)
    for found in listed:
        written = PROMPTS[found.name].definition
        assert (found.title, found.description) == (written["title"], written["description"])
        assert [(one.name, one.description, bool(one.required)) for one in found.arguments or []] == [
            (one["name"], one["description"], "required" in one) for one in written["arguments"]
        ]
    text = said(await client.get_prompt("deploy_model", {"model": " {name} of mine "}))
    assert "this machine: {name} of mine\n" in text and "the model's own id" in text, "what an argument holds is not filled in again"
    assert "Where: every device" in said(await client.get_prompt("free_memory"))


@pytest.mark.parametrize("client", ERAS, indirect=True)
@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("deploy", {"model": "x"}, "deploy_model"),
        ("deploy_model", {}, "model"),
        ("deploy_model", {"model": "  "}, "model"),
        ("deploy_model", {"model": "x", "nam": "y"}, "name"),
        ("diagnose", {"subject": "x" * (LONGEST + 1)}, "limit"),
    ],
)
async def test_what_does_not_fit_is_refused_with_a_reason(client: Client, name: str, arguments: dict[str, str], word: str) -> None:
    with pytest.raises(MCPError) as refused:
        await client.get_prompt(name, arguments)
    assert refused.value.code == types.INVALID_PARAMS
    assert word in f"{refused.value.error.message} {refused.value.data.get('hint')}"


async def complete(client: Client, ref: Any, name: str, value: str) -> types.Completion:
    return (await client.complete(ref, {"name": name, "value": value})).completion


@pytest.mark.parametrize("client", ERAS, indirect=True)
async def test_arguments_complete_from_what_lives(client: Client) -> None:
    prompt, template = types.PromptReference, types.ResourceTemplateReference
    models = await complete(client, prompt(name="deploy_model"), "model", "tin")
    assert sorted(models.values) == ["tin-whistle", "tiny"] and models.total == 2 and models.has_more is False
    assert (await complete(client, prompt(name="deploy_model"), "model", "WHIS")).values == ["tin-whistle"]
    assert (await complete(client, prompt(name="deploy_model"), "name", "")).values == []
    assert "cpu" in (await complete(client, prompt(name="free_memory"), "device", "")).values
    assert (await complete(client, prompt(name="diagnose"), "unit", "model.pu")).values == ["model.pull"]
    everything = (await complete(client, prompt(name="diagnose"), "subject", "")).values
    assert {"tiny", "cpu", "llamacpp"} <= set(everything)
    assert (await complete(client, template(uri="aima://model/{model_id}"), "model_id", "tiny")).values == ["tiny"]
    assert (await complete(client, template(uri="aima://engine/{name}"), "name", "llamac")).values == ["llamacpp"]
    assert (await complete(client, template(uri="aima://service/{service_id}"), "service_id", "")).values == []


@pytest.mark.parametrize("client", ERAS, indirect=True)
@pytest.mark.parametrize(
    ("ref", "name"),
    [
        (types.PromptReference(name="nothing"), "model"),
        (types.PromptReference(name="diagnose"), "nothing"),
        (types.ResourceTemplateReference(uri="aima://nothing/{x}"), "x"),
        (types.ResourceTemplateReference(uri="aima://model/{model_id}"), "device_id"),
    ],
)
async def test_what_cannot_be_completed_is_refused(client: Client, ref: Any, name: str) -> None:
    with pytest.raises(MCPError) as refused:
        await complete(client, ref, name, "")
    assert refused.value.code == types.INVALID_PARAMS


async def test_a_completion_shows_no_more_than_its_caller_may_read(hosted: Gateway) -> None:
    completions = Completions(hosted, Prompts(hosted))
    assert await completions._values("device.info", Caller("reader", frozenset({"read"}))) != []
    assert await completions._values("device.info", Caller("nobody", frozenset())) == []


def test_a_completion_has_at_most_a_hundred_values() -> None:
    """As the protocol says; the first of them are those that begin so."""
    found = fitting(["x-7", *(f"7-{number}" for number in range(150))], "7")
    assert (len(found["values"]), found["total"], found["hasMore"]) == (100, 151, True)
    assert "x-7" not in found["values"]
    assert fitting(["Tiny", "other"], "TI") == {"values": ["Tiny"], "total": 1, "hasMore": False}


def prompt(**keys: Any) -> dict[str, Any]:
    argument = {"name": "model", "description": "A model to use.", "required": True, "completes": ["thing.list"]}
    return (
        unit("prompt", "prompt.make", template="make.md", arguments=[argument], examples=[{"title": "it", "input": {}, "output": ""}])
        | keys
    )


LISTING = unit("query", "thing.list", primary="things", outputSchema={"type": "object", "properties": {"things": {"type": "array"}}})
HANDLER = "@handles('thing.list')\nasync def things(ctx):\n    return {'things': []}\n"


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("Make {model}.", {}, None),
        (None, {}, r"make\.md cannot be read"),
        ("Make {modle}.", {}, r"schemas/prompt/make\.json takes \['model'\]; its text has blanks for \['modle'\]"),
        ("Make {model}.", {"arguments": [{"name": "model", "completes": ["thing.lost"]}]}, r"completes names 'thing\.lost'"),
    ],
)
def test_a_prompt_and_its_text_agree(
    tmp_path: Path, request: pytest.FixtureRequest, text: str | None, change: Any, message: str | None
) -> None:
    folder = write_schemas(tmp_path / "schemas", LISTING, json.loads(json.dumps(prompt(**change))))
    if text is not None:
        (folder / "prompt" / "make.md").write_text(text, encoding="utf-8")
    handlers = write_handlers(tmp_path, "handlers_" + "".join(filter(str.isalnum, request.node.name)), HANDLER)
    if message is None:
        assert Registry.load(handlers, folder)["prompt.make"].definition["text"] == text
        return
    with pytest.raises(SchemaError, match=message):
        Registry.load(handlers, folder)


async def test_a_profile_is_no_reason_to_lack_prompts(home: Home, hosted: Gateway) -> None:
    async with Client(build(hosted, profile="inference").server, mode="auto") as connected:
        assert len((await connected.list_prompts()).prompts) == len(PROMPTS)
