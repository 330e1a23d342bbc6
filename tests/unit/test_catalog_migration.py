"""Files in the format of the Go AIMA: they become recipes, or what they lack is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host

pytestmark = pytest.mark.anyio
MIB = 1 << 20
MODEL = """
kind: model_asset
metadata: {name: example-chat-8b, type: llm, family: example, parameter_count: "8B"}
storage:
  formats: [safetensors, gguf]
  default_path_pattern: "{{.DataDir}}/models/{{.Name}}"
  sources:
    - {type: modelscope, repo: example/Example-Chat-8B}
    - {type: huggingface, repo: example/example-chat-8b}
    - {type: local_path, path: /mnt/data/models}
variants:
  - name: example-chat-8b-other
    hardware: {gpu_arch: Ampere, vram_min_mib: 16384}
    engine: no-such-engine
    format: safetensors
  - name: example-chat-8b-blackwell-vllm
    hardware: {gpu_arch: Blackwell, vram_min_mib: 20480, unified_memory: true}
    engine: vllm
    format: safetensors
    default_config: {gpu_memory_utilization: 0.5, max_model_len: 8192, dtype: bfloat16, port: 8000, enforce_eager: true}
    expected_performance: {tokens_per_second: [18, 25], latency_first_token_ms: [30, 80]}
  - name: example-chat-8b-any-llamacpp
    hardware: {gpu_arch: "*", vram_min_mib: 0}
    engine: llamacpp
    format: gguf
    default_config: {ctx_size: 4096, n_gpu_layers: 999}
    expected_performance: {tokens_per_second: [0, 0]}
"""
ENGINE = """
kind: engine_asset
metadata: {name: vllm-0.8-blackwell, type: vllm, version: "0.8"}
image:
  name: example/vllm-openai
  tag: latest
  platforms: [linux/amd64, linux/arm64]
hardware: {gpu_arch: Blackwell, vram_min_mib: 4096}
startup:
  command: [vllm, serve, "{{.ModelPath}}"]
  default_args: {port: 8000, gpu_memory_utilization: 0.75, max_model_len: 8192}
  health_check: {path: /health, timeout_s: 120}
"""
REST: dict[str, Any] = {
    "name": "example-on-vllm",
    "title": "A model for that engine",
    "type": "llm",
    "license": "mit",
    "size_bytes": 16_000_000_000,
    "memory_bytes": 20_000_000_000,
    "sources": [{"source": "huggingface", "repo": "example/chat", "evidence": "unverified"}],
}


@pytest.fixture(scope="module")
async def hosted(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with host(Home(tmp_path_factory.mktemp("home"))) as opened:
        yield opened


async def test_a_model_asset_becomes_the_recipe_of_its_first_able_variant(hosted: Gateway) -> None:
    made = await hosted.call("catalog.create_recipe", {"definition": MODEL})
    assert made["recipe"]["id"] == "example-chat-8b-blackwell-vllm" and made["recipe"]["license"] == "not stated"
    document = (await hosted.call("catalog.get", {"recipe_id": made["recipe"]["id"]}))["document"]
    assert document["engines"] == ["vllm"]
    assert document["options"] == {"memory_fraction": 0.5, "context_length": 8192, "dtype": "bfloat16"}
    assert document["hardware"] == {
        "types": ["gpu"],
        "vendors": ["nvidia"],
        "architectures": ["blackwell"],
        "memory_kinds": ["unified"],
        "memory_bytes": {"min": 20480 * MIB},
    }
    assert [source["source"] for source in document["sources"]] == ["modelscope", "huggingface"]
    assert (document["size_bytes"], document["memory_bytes"]) == (16_000_000_000, 20480 * MIB)
    assert "derived from 8B parameters of bfloat16" in document["evidence"]["size_bytes"]
    [figures] = document["expected"]
    assert (figures["tokens_per_second"], figures["ttft_ms"]) == (18, 80) and figures["evidence"].startswith("unverified")
    notes = " ".join(made["notes"])
    for word in ("example-chat-8b-other", "enforce_eager", "local_path", "license"):
        assert word in notes


async def test_another_variant_says_what_is_missing_and_takes_it(hosted: Gateway) -> None:
    given = {"definition": MODEL, "variant": "example-chat-8b-any-llamacpp"}
    told = await hosted.call("catalog.validate_recipe", given)
    assert {issue["path"] for issue in told["issues"]} == {"size_bytes", "memory_bytes"}
    assert "beside definition" in told["issues"][0]["suggestion"]
    whole = {**given, "recipe": {"size_bytes": 5_000_000_000, "memory_bytes": 6_000_000_000, "license": "apache-2.0"}}
    made = await hosted.call("catalog.create_recipe", whole)
    document = (await hosted.call("catalog.get", {"recipe_id": made["recipe"]["id"]}))["document"]
    assert document["options"] == {"context_length": 4096} and "expected" not in document and "hardware" not in document
    assert any("more than zero" in note for note in made["notes"])


async def test_an_engine_asset_needs_a_model_beside_it(hosted: Gateway) -> None:
    told = await hosted.call("catalog.validate_recipe", {"definition": ENGINE})
    assert {issue["path"] for issue in told["issues"]} == set(REST)
    made = await hosted.call("catalog.create_recipe", {"definition": ENGINE, "recipe": REST})
    document = (await hosted.call("catalog.get", {"recipe_id": "example-on-vllm"}))["document"]
    assert document["engines"] == ["vllm"] and document["options"] == {"memory_fraction": 0.75, "context_length": 8192}
    assert any("latest is left out" in note for note in made["notes"]) and any("0.8" in note for note in made["notes"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("kind: hardware_profile\nmetadata: {name: x}\n", "kind"),
        ("kind: partition_strategy\n", "kind"),
        ("kind: no_such_kind\n", "kind"),
        (MODEL.replace("type: llm", "type: oracle"), "metadata.type"),
        (MODEL.replace("engine: vllm", "engine: exotic").replace("engine: llamacpp", "engine: odd"), "variants[0].engine"),
        (MODEL.replace("Blackwell", "RDNA3.5"), "variants[1].hardware.gpu_arch"),
        (MODEL[: MODEL.index("variants:")], "variants"),
        (MODEL[: MODEL.index("variants:")] + "variants: 7\n", "variants"),
        (MODEL.replace("gpu_memory_utilization: 0.5", "gpu_memory_utilization: 7"), "options.memory_fraction"),
    ],
)
async def test_what_cannot_become_a_recipe_is_said(hosted: Gateway, text: str, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await hosted.call("catalog.create_recipe", {"definition": text})
    assert path in [issue["path"] for issue in caught.value.details["issues"]], caught.value.details


async def test_a_variant_that_is_not_there_is_named(hosted: Gateway) -> None:
    with pytest.raises(InvalidArgument, match="no variant is called 'x'"):
        await hosted.call("catalog.create_recipe", {"definition": MODEL, "variant": "x"})
