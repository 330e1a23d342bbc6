"""Recipes as documents: those that come with AIMA, those that are refused and where, those that are kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from aima_lib.catalog.recipe import load, read
from aima_lib.catalog.shelf import builtins
from aima_lib.errors import AlreadyExists, ApprovalRequired, FailedPrecondition, InvalidArgument, NotFound
from aima_lib.gateway import Gateway
from tests.world import within

GOOD: dict[str, Any] = {
    "name": "mine",
    "title": "My own",
    "type": "llm",
    "engines": ["llamacpp"],
    "license": "mit",
    "size_bytes": 1_000_000,
    "memory_bytes": 2_000_000,
    "sources": [{"source": "huggingface", "repo": "a/b", "evidence": "unverified"}],
    "evidence": {"size_bytes": "unverified", "memory_bytes": "unverified"},
}
SOURCE = GOOD["sources"][0]
DIGEST = "a" * 64


def test_at_least_twenty_four_come_with_aima() -> None:
    known = builtins()
    assert len(known) >= 24
    kinds = Counter(recipe["type"] for recipe in known.values())
    assert {"llm", "vlm", "asr", "tts", "embedding", "rerank", "diffusion"} <= set(kinds), kinds
    for recipe in known.values():
        for source in recipe["sources"]:
            assert "sha256" in source or "unverified" in source["evidence"] or source["source"] == "builtin"
        for figures in recipe.get("expected", ()):
            assert figures["evidence"].startswith("unverified") or figures["measured"]["device"]
        assert {"size_bytes", "memory_bytes"} <= set(recipe["evidence"])


def test_a_recipe_is_the_same_as_yaml_and_as_an_object() -> None:
    assert read(yaml.safe_dump(GOOD)) == read(GOOD) == GOOD
    rich = {
        **GOOD,
        "engines": [{"name": "llamacpp", "version": "2026.10.1"}, {"name": "llama-server", "image": f"example/llama@sha256:{DIGEST}"}],
        "options": {"context_length": 8192},
        "service": {"priority": 70},
        "limits": {"memory_bytes": 3_000_000},
    }
    assert read(rich) == rich


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nname: mine\n"
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("a tag", {"engines": [{"name": "llamacpp", "image": "example/llama:latest"}]}, "engines[0].image"),
    ("no digest at all", {"engines": [{"name": "llamacpp", "image": "example/llama"}]}, "engines[0].image"),
    ("privileged", {"engines": [{"name": "llamacpp", "privileged": True}]}, "engines[0].privileged"),
    ("host mounts", {"engines": [{"name": "llamacpp", "mounts": ["/:/host"]}]}, "engines[0].mounts"),
    ("devices", {"devices": ["/dev/mem"]}, "devices"),
    ("a socket", {"engines": [{"name": "llamacpp", "volumes": ["/var/run/docker.sock"]}]}, "engines[0].volumes"),
    ("every interface", {"options": {"host": "0.0.0.0"}}, "options.host"),
    ("an option beyond its bounds", {"options": {"context_length": 10**9}}, "options.context_length"),
    ("an option of another engine", {"options": {"tensor_parallel": 2}}, "options.tensor_parallel"),
    ("a path of the machine", {"sources": [{**SOURCE, "repo": "/etc/shadow"}]}, "sources[0].repo"),
    ("a path by steps", {"sources": [{**SOURCE, "repo": "../../etc"}]}, "sources[0].repo"),
    ("a file outside", {"sources": [{**SOURCE, "file": "../x.gguf"}]}, "sources[0].file"),
    ("a file address", {"sources": [{**SOURCE, "source": "url", "repo": "file:///etc/passwd"}]}, "sources[0].repo"),
    ("a login in an address", {"sources": [{**SOURCE, "source": "url", "repo": "https://u:p@example.org/x.gguf"}]}, "sources[0].repo"),
    ("a mirror of its own", {"sources": [{**SOURCE, "mirror": "http://127.0.0.1"}]}, "sources[0].mirror"),
    ("a source of the machine's", {"sources": [{**SOURCE, "source": "local"}]}, "sources[0].source"),
    ("a name that leads elsewhere", {"name": "../x"}, "name"),
    ("no speed", {"expected": [{"tokens_per_second": 0, "evidence": "unverified"}]}, "expected[0].tokens_per_second"),
    ("a speed that nothing has", {"expected": [{"tokens_per_second": 1e9, "evidence": "unverified"}]}, "expected[0].tokens_per_second"),
    ("an answer before the question", {"expected": [{"ttft_ms": -1, "evidence": "unverified"}]}, "expected[0].ttft_ms"),
    ("a figure that cites nothing", {"expected": [{"ttft_ms": 5, "evidence": "it is so"}]}, "expected[0].evidence"),
    ("less memory than weights", {"memory_bytes": 1}, "memory_bytes"),
    ("an engine nobody knows", {"engines": ["vlm"]}, "engines[0]"),
    ("an engine for other work", {"engines": ["piper"]}, "engines[0]"),
    ("bounds the wrong way round", {"hardware": {"memory_bytes": {"min": 2, "max": 1}}}, "hardware.memory_bytes"),
    ("an environment", {"env": {"LD_PRELOAD": "x.so"}}, "env"),
]


@pytest.mark.parametrize(("changes", "path"), [pytest.param(changes, path, id=name) for name, changes, path in HOSTILE])
def test_what_is_hostile_or_wrong_is_refused_with_its_path(changes: dict[str, Any], path: str) -> None:
    for given in (GOOD | changes, yaml.safe_dump(GOOD | changes)):
        with pytest.raises(InvalidArgument) as caught:
            read(given)
        issues = caught.value.details["issues"]
        assert path in [issue["path"] for issue in issues], issues
        assert isinstance(given, dict) or issues[0]["line"]


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "name: !!python/object/apply:os.system [id]\n",
        "a: " + "[" * 5_000,
        "a: {" * 5_000,
        "x" * 300_000,
        "name: a\nname: b\n",
        "? [a]\n: b\n",
        "- just\n- a list\n",
        "text",
        "a: .nan",
        "\0",
    ],
    ids=["bomb", "tag", "deep lists", "deep maps", "long", "twice", "odd key", "list", "text", "nan", "nul"],
)
def test_a_document_that_is_no_recipe_costs_nothing(text: str) -> None:
    with within(2), pytest.raises(InvalidArgument) as caught:
        read(text)
    assert len(json.dumps(caught.value.as_dict())) < 60_000


@pytest.mark.parametrize("text", ["name: a", "[", "name: other\n"], ids=["incomplete", "not YAML", "misnamed"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"a\.yaml"):
        load(tmp_path)


@pytest.mark.anyio
async def test_a_recipe_is_made_read_and_deleted(hosted: Gateway) -> None:
    made = await hosted.call("catalog.create_recipe", {"recipe": GOOD})
    assert made["recipe"]["id"] == "mine" and made["recipe"]["source"] == "user"
    assert await hosted.call("catalog.create_recipe", {"definition": yaml.safe_dump(GOOD)}) == made
    events = hosted.services.events.page(0, 100, ["catalog.recipe_created"])
    assert [event["payload"] for event in events] == [{"recipe_id": "mine", "type": "llm", "by": "owner"}]
    await hosted.call("catalog.create_recipe", {"recipe": GOOD | {"title": "Another"}})
    assert (await hosted.call("catalog.get", {"recipe_id": "mine"}))["recipe"]["title"] == "Another"
    await hosted.call("catalog.create_recipe", {"recipe": GOOD})
    with pytest.raises(AlreadyExists, match="comes with AIMA"):
        await hosted.call("catalog.create_recipe", {"recipe": GOOD | {"name": "digits8"}})
    assert (await hosted.call("catalog.get", {"recipe_id": "mine"}))["document"] == GOOD
    assert [row["id"] for row in (await hosted.call("catalog.list", {"source": "user"}))["recipes"]] == ["mine"]
    assert (await hosted.read("aima://catalog/recipe/mine"))["content"]["document"] == GOOD
    with pytest.raises(ApprovalRequired) as asked:
        await hosted.call("catalog.delete_recipe", {"recipe_id": "mine"})
    plan = asked.value.details["plan"]
    await hosted.call("catalog.delete_recipe", {"recipe_id": "mine"}, token=plan["token"])
    with pytest.raises(NotFound):
        await hosted.call("catalog.get", {"recipe_id": "mine"})
    with pytest.raises(FailedPrecondition, match="comes with AIMA"):
        await hosted.plan("catalog.delete_recipe", {"recipe_id": "digits8"})


@pytest.mark.anyio
async def test_what_is_wrong_is_told_with_its_line(hosted: Gateway) -> None:
    text = yaml.safe_dump(GOOD | {"engines": ["llamacp"], "options": {"context_length": 8192}}, sort_keys=False)
    told = await hosted.call("catalog.validate_recipe", {"definition": text})
    assert told["valid"] is False and told["notes"] == []
    [issue] = told["issues"]
    assert (issue["path"], issue["line"]) == ("engines[0]", text[: text.index("llamacp")].count("\n") + 1)
    assert "did you mean llamacpp" in issue["suggestion"]
    assert (await hosted.call("catalog.validate_recipe", {"recipe": GOOD}))["valid"] is True
    with pytest.raises(InvalidArgument, match="whole recipe"):
        await hosted.call("catalog.validate_recipe", {"recipe": GOOD, "definition": "name: x"})
