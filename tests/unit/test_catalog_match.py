"""Recipes matched to machines on file: never one that does not fit, and each choice with its reasons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from aima_lib.catalog import evidence
from aima_lib.catalog.fit import FRACTIONS, Seat, as_model, judged
from aima_lib.catalog.machine import Machine, described, here
from aima_lib.catalog.match import Match, Matcher
from aima_lib.catalog.recipe import engines
from aima_lib.catalog.shelf import builtins
from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Gateway
from aima_lib.infra.hal import Hardware
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_lib.runtime import host
from aima_lib.services import memory
from aima_lib.services.books import Books
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements, load_of
from tests.machines import GIB, MACHINES, Described, being
from tests.unit.test_nvidia import Library

SEATS = {name: Seat(name, None, True) for name in engines()}
RESERVE = 0.1


@pytest.fixture(scope="module")
async def gateway(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with host(Home(tmp_path_factory.mktemp("home"))) as opened:
        yield opened


async def seen(gateway: Gateway, machine: Described, root: Path) -> Machine:
    """What HAL makes of a machine; what is installed there nobody knows."""
    services = gateway.services
    with being(machine, root):
        architecture = machine.machine.replace("arm64", "aarch64")
        hardware = Hardware(root, Library(*machine.gpus) if machine.gpus else Library(), architecture)
        devices = DeviceService(services.config, services.store, services.events, hardware)
        books = Books({"memory_reserve_fraction": RESERVE, "memory_limit_gib": None}, services.store, devices, services.events)
        return replace(await here(devices, books), described=True)


# The best text model of each; the small container has none.
TOP = {
    "DGX Spark GB10": ("gpt-oss-120b", "gpu-0"),
    "DGX Spark GB10, half taken": ("qwen3-14b", "gpu-0"),
    "Jetson Thor 128": ("gpt-oss-120b", "gpu-0"),
    "Jetson AGX Orin 64": ("qwen3-14b", "gpu-0"),
    "Jetson AGX Orin 32": ("qwen3-14b", "gpu-0"),
    "Jetson Orin NX 16": ("qwen3-14b", "gpu-0"),
    "Jetson Orin Nano 8": ("qwen3-4b", "gpu-0"),
    "RTX 2060": ("qwen3-4b", "gpu-0"),
    "RTX 3060": ("qwen3-8b", "gpu-0"),
    "RTX 3060 Ti": ("qwen3-8b", "gpu-0"),
    "RTX 3090": ("qwen3-8b-vllm", "gpu-0"),
    "RTX 4060": ("qwen3-8b", "gpu-0"),
    "RTX 4070": ("qwen3-8b", "gpu-0"),
    "RTX 4080": ("qwen3-14b", "gpu-0"),
    "RTX 4090": ("qwen3-8b-vllm", "gpu-0"),
    "RTX 4090, nearly full": ("qwen3-30b-a3b", "cpu"),
    "RTX 5070 Ti": ("qwen3-14b", "gpu-0"),
    "RTX 5090": ("qwen3-32b", "gpu-0"),
    "A100-SXM4-40GB": ("qwen3-32b", "gpu-0"),
    "A100-SXM4-80GB": ("qwen2.5-72b-awq-vllm", "gpu-0"),
    "L40S": ("qwen3-32b-fp8-vllm", "gpu-0"),
    "H100 80GB HBM3": ("qwen2.5-72b-awq-vllm", "gpu-0"),
    "H200": ("qwen2.5-72b-awq-vllm", "gpu-0"),
    "B200": ("qwen2.5-72b-awq-vllm", "gpu-0"),
    "MacBook M2 8": ("qwen3-1.7b", "cpu"),
    "Mac M4 Pro 48": ("qwen3-30b-a3b", "cpu"),
    "Mac M3 Ultra 192": ("gpt-oss-120b", "cpu"),
    "CPU 8 GB": ("qwen2.5-coder-0.5b", "cpu"),
    "CPU 16 GB": ("qwen3-4b", "cpu"),
    "CPU 32 GB": ("qwen3-30b-a3b", "cpu"),
    "CPU 64 GB": ("qwen3-30b-a3b", "cpu"),
}


@pytest.mark.anyio
async def test_thirty_machines_each_have_their_recipes(gateway: Gateway, tmp_path: Path) -> None:
    assert len(MACHINES) >= 30
    chosen = {}
    for place, machine in enumerate(MACHINES):
        found = await seen(gateway, machine, tmp_path / str(place))
        matches, misses = await Matcher(gateway.services).all(builtins().values(), found)
        assert len(matches) + len(misses) == len(builtins()) and all(miss.reason for miss in misses)
        for match in matches:
            assert holds(match, found), f"{match.fit.recipe['name']} on {machine.name}"
        best = {kind: next((each for each in matches if each.fit.recipe["type"] == kind), None) for kind in ("llm", "vlm", "asr")}
        chosen[machine.name] = best["llm"]
        show(machine, best)
    assert {name: (match.fit.recipe["name"], match.fit.device["id"]) for name, match in chosen.items() if match} == TOP


def show(machine: Described, best: dict[str, Match | None]) -> None:
    for kind, match in best.items():
        told = f"{match.fit.recipe['name']} ({match.score}): {'; '.join(match.reasons)}" if match else "none fits"
        print(f"{machine.name} | {kind} | {told}")


def holds(match: Match, machine: Machine) -> bool:
    """Whether it fits, judged anew: the sum of model.estimate_resources, and every condition of its profile."""
    recipe, device = match.fit.recipe, match.fit.device
    free, wanted = machine.free[device["id"]], recipe.get("hardware", {})
    high = memory.estimate(
        as_model(recipe)["geometry"], recipe["size_bytes"], (load := load_of(as_model(recipe), recipe.get("options", {}), device)).context_length,
        load.parallel, load,
    )["high_bytes"]  # fmt: skip
    assert free is not None
    return (
        (high if high is not None else recipe["memory_bytes"]) <= free
        and device["type"] in wanted.get("types", [device["type"]])
        and device["vendor"] in wanted.get("vendors", [device["vendor"]])
        and device["architecture"] in wanted.get("architectures", [device["architecture"]])
        and device["memory"]["kind"] in wanted.get("memory_kinds", [device["memory"]["kind"]])
        and machine.os in wanted.get("os", [machine.os])
        and machine.machine in wanted.get("machines", [machine.machine])
        and set(wanted.get("capabilities", ())) <= set(device["capabilities"])
        and wanted.get("memory_bytes", {}).get("min", 0)
        <= device["memory"]["total_bytes"]
        <= wanted.get("memory_bytes", {}).get("max", 1 << 62)
        and device["type"] in engines()[match.fit.seat.name if match.fit.seat else ""].devices
    )


DEVICES = some.fixed_dictionaries(
    {
        "type": some.sampled_from(["cpu", "gpu"]),
        "name": some.sampled_from(["NVIDIA GB10", "NVIDIA GeForce RTX 4090", "Apple M3", "a processor", "NVIDIA Thor"]),
        "vendor": some.sampled_from(["nvidia", "apple", "amd", "intel"]),
        "architecture": some.sampled_from(["ampere", "ada", "hopper", "blackwell", "turing", "x86_64", "aarch64"]),
        "memory_kind": some.sampled_from(["dedicated", "unified", "system"]),
        "capabilities": some.lists(some.sampled_from(["cuda", "fp8", "bf16", "fp16", "avx2"]), unique=True),
        "cores": some.integers(1, 128),
        "os": some.sampled_from(["linux", "macos", "windows"]),
        "machine": some.sampled_from(["x86_64", "aarch64"]),
        "memory_bytes": some.integers(0, 300 * GIB),
    },
    optional={"used_bytes": some.just(0)},
)


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = Store(tmp_path_factory.mktemp("store") / "aima.db")
    yield Measurements(store)
    store.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=DEVICES, share=some.floats(0, 1))
def test_never_one_that_does_not_fit(measurements: Measurements, overrides: dict[str, Any], share: float) -> None:
    overrides["used_bytes"] = int(overrides["memory_bytes"] * share)
    machine = described(overrides, None, RESERVE)
    device = machine.devices[0]
    for recipe in builtins().values():
        fit = judged(recipe, device, machine, SEATS, engines(), measurements)
        if fit.reason is not None:
            continue
        assert holds(Match(fit, 0, [], {}), machine)
        if fit.seat and fit.seat.name in FRACTIONS and device["type"] == "gpu":
            share_bytes = recipe.get("options", {}).get("memory_fraction", FRACTIONS[fit.seat.name]) * overrides["memory_bytes"]
            assert (fit.needs_bytes or 0) <= share_bytes
        for unknown in ({"memory_bytes": None}, {"vendor": None, "architecture": None, "name": "?", "memory_kind": "dedicated"}):
            other = {**overrides, **unknown, "used_bytes": 0}
            if other["memory_bytes"] is None:  # what is not known does not fit
                other.pop("memory_bytes")
            poorer = described(other, None, RESERVE)
            again = judged(recipe, poorer.devices[0], poorer, SEATS, engines(), measurements)
            profile = set(recipe.get("hardware", {})) & {"vendors", "architectures", "names"}
            assert again.reason is not None or ("memory_bytes" in other and not profile)


@pytest.mark.anyio
async def test_the_unit_says_why_not(gateway: Gateway) -> None:
    small = {"type": "gpu", "vendor": "nvidia", "architecture": "ada", "memory_bytes": 4 * GIB, "capabilities": ["cuda"]}
    told = await gateway.call("catalog.match", {"overrides": small, "type": "llm", "refused": True, "limit": 100})
    reasons = {row["recipe_id"]: row["reason"] for row in told["refused"]}
    assert "needs" in reasons["qwen3-32b"] and "are free" in reasons["qwen3-32b"]
    assert "not known to have fp8" in reasons["qwen3-32b-fp8-vllm"]
    assert reasons["gpt-oss-120b"].startswith("it is for unified or system")
    assert set(reasons) | {row["recipe"]["id"] for row in told["recipes"]} == {
        each["name"] for each in builtins().values() if each["type"] == "llm"
    }
    assert told["total"] == len(told["recipes"]) and told["refused_total"] == len(reasons)
    quiet = await gateway.call("catalog.match", {"overrides": small})
    assert quiet["refused"] == [] and quiet["refused_total"] > 0
    one = await gateway.call("catalog.match", {"overrides": small, "recipe_id": "qwen3-32b"})
    assert [row["recipe_id"] for row in one["refused"]] == ["qwen3-32b"]


@pytest.mark.anyio
async def test_a_device_of_this_machine_with_other_values(gateway: Gateway) -> None:
    cpu = gateway.services.devices.device("cpu")
    found = await gateway.call("catalog.match", {"device_id": "cpu", "overrides": {"memory_bytes": 64 * GIB, "cores": 32}, "type": "llm"})
    assert {row["device_id"] for row in found["recipes"]} == {"cpu"} and found["recipes"][0]["free_bytes"] == int(64 * GIB * (1 - RESERVE))
    assert cpu["name"] in found["recipes"][0]["reasons"][0]
    with pytest.raises(InvalidArgument, match="more than memory_bytes"):
        described({"memory_bytes": 1, "used_bytes": 2}, None, RESERVE)


@pytest.mark.anyio
async def test_here_it_fits_what_is_free_now(gateway: Gateway) -> None:
    told = await gateway.call("catalog.match", {"limit": 100})
    assert told["recipes"] and [row["score"] for row in told["recipes"]] == sorted((row["score"] for row in told["recipes"]), reverse=True)
    for row in told["recipes"]:
        assert row["needs_bytes"] <= row["free_bytes"] <= psutil.virtual_memory().total and len(row["reasons"]) >= 3
    assert "asr" in {row["recipe"]["type"] for row in told["recipes"]}  # its engine would be installed


def record(**changes: Any) -> dict[str, Any]:
    hardware = {"fingerprint": "f" * 16, "driver": "580", **changes.pop("hardware", {})}
    base = {"id": "b", "created_at": "2026-11-27T00:00:00Z", "engine": "llamacpp", "engine_version": "1", "tokens_per_second": 10.0}
    return {**base, "ttft_ms": {"p50": 5.0}, "concurrency": 1, "hardware": hardware, **changes}


def test_evidence_weighs_less_where_something_changed() -> None:
    recipe: dict[str, Any] = {"name": "r", "expected": [{"tokens_per_second": 9, "evidence": "unverified; a ceiling"}]}
    device = {"name": "NVIDIA X", "driver": "580"}

    def weight(*records: dict[str, Any], version: str = "1", driver: str = "580") -> tuple[str, float]:
        known = evidence.of(recipe, {**device, "driver": driver}, "llamacpp", version, "f" * 16, records)
        return known["kind"], known["weight"]

    assert weight() == ("unverified", 0.0)
    assert weight(record()) == ("measured here", 1.0)
    assert weight(record(), version="2") == ("measured here", 0.6)
    assert weight(record(), version="2", driver="590") == ("measured here", 0.36)
    assert weight(record(hardware={"fingerprint": "0" * 16})) == ("measured elsewhere", 0.5)
    assert weight(record(engine="vllm")) == ("unverified", 0.0)
    assert weight(record(engine_version="0"), record()) == ("measured here", 1.0)  # the weightiest counts
    measured = {"at": "2026-11", "device": "NVIDIA X", "driver": "580", "engine": "llamacpp", "engine_version": "1"}
    recipe["expected"] = [{"tokens_per_second": 9, "evidence": "seen by somebody", "measured": measured}]
    assert weight() == ("measured elsewhere", 0.5) and weight(version="2") == ("measured elsewhere", 0.3)
    measured["device"] = "another"
    assert weight() == ("measured elsewhere", 0.3)


def test_a_fingerprint_is_the_hardwares_alone() -> None:
    base = described({"type": "gpu", "vendor": "nvidia", "memory_bytes": 24 * GIB}, None, RESERVE)
    same = described({"type": "gpu", "vendor": "nvidia", "memory_bytes": 24 * GIB, "used_bytes": GIB, "driver": "1"}, None, RESERVE)
    other = described({"type": "gpu", "vendor": "nvidia", "memory_bytes": 48 * GIB}, None, RESERVE)
    assert base.fingerprint == same.fingerprint != other.fingerprint
