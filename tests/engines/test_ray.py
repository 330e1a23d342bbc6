"""Engines on a Ray cluster: three nodes on this machine, two replicas, and a node that is killed under load."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from aima_lib.errors import AlreadyExists, FailedPrecondition
from aima_lib.infra.home import Home
from aima_lib.launchers import berth, process
from tests.engines.conftest import Hosted
from tests.engines.pacing import ask, asking, paced
from tests.world import until

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'aima[ray]'")
OPTIONS = {"parallel": 4, "context_length": 256}
NODES = """
import json, sys
from ray.cluster_utils import Cluster
many = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster()
quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
cluster.add_node(num_cpus=0, _system_config=quick, **many)
nodes = {node.node_id[:8]: node for node in (cluster.add_node(num_cpus=4, memory=1 << 30, **many) for _ in range(2))}
import ray
ray.init(cluster.address, namespace="aima", log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1, "memory": 512 << 20}], name="set-aside", lifetime="detached")
ray.get(group.ready())
[(_, kept)] = ray.util.placement_group_table(group)["bundles_to_node_id"].items()
print(json.dumps({"set_aside": kept[:8], "address": cluster.address, "nodes": list(nodes)}), flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[line.strip()], allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A cluster in a process of its own, as others' are: a head without room for engines, and two nodes with some."""

    def __init__(self, folder: Path) -> None:
        local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # Ray's own way to stay on loopback
        command, self.log = [sys.executable, "-c", NODES], (folder / "ray.log").open("wb")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self._process = subprocess.Popen(command, text=True, env={**os.environ, **local}, **pipes)
        assert self._process.stdout and self._process.stdin
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.address, self.names, self.set_aside = said["address"], said["nodes"], said["set_aside"]

    def kill(self, name: str) -> None:
        """kill -9 of one node."""
        assert self._process.stdout and self._process.stdin
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout and self._process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    opened = Nodes(tmp_path_factory.mktemp("ray"))
    yield opened
    opened.close()


@pytest.fixture
async def hosted(
    home: Home, fixtures: Path, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> AsyncIterator[Hosted]:
    """A hosted home with that cluster, whose llama-server takes its time."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    async with paced(home, fixtures, tmp_path, engines=f'ray.address = "{nodes.address}"', hung=60) as found:
        yield found


def berths() -> list[psutil.Process]:
    """Whatever runs for engines on nodes of this machine, keepers and engines."""
    found = [each for each in psutil.process_iter(["cmdline"]) if berth.PREFIX in " ".join(each.info["cmdline"] or ())]
    return [each for each in found if lives(each)]


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def where(hosted: Hosted) -> dict[str, str]:
    """The node of each engine of the service."""
    found = hosted.gateway.services.store.find("instance", service_id="tiny")
    return {each["id"]: each["placement"]["node"].partition("/")[2] for each in found if each["status"] == "ready"}


async def serve(hosted: Hosted, **more: Any) -> dict[str, Any]:
    await hosted.tiny()
    order = {"model_id": "tiny", "engine": "llama-server", "options": OPTIONS, "launcher": "ray", **more}
    return dict((await hosted.call("service.create", **order))["service"])


@needs_ray
async def test_an_engine_goes_where_room_was_set_aside(
    home: Home, fixtures: Path, tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    there = f'ray.address = "{nodes.address}"\nray.placement_group = "set-aside"'
    async with paced(home, fixtures, tmp_path, engines=there, hung=60) as found:
        await serve(found)
        assert list(where(found).values()) == [nodes.set_aside]
    elsewhere = there.replace("set-aside", "nowhere")
    async with paced(home, fixtures, tmp_path, engines=elsewhere, hung=60) as found:
        with pytest.raises(FailedPrecondition, match="Failed to look up placement group with name: nowhere"):
            await serve(found)


@needs_ray
async def test_an_engine_that_dies_on_a_node_that_lives_is_its_homes_to_start_again(hosted: Hosted) -> None:
    await serve(hosted)
    [engine] = [each for each in berths() if "paced_engine" in " ".join(each.cmdline())]
    engine.kill()
    [died] = await hosted.until(lambda: hosted.events("engine.error"), 20)
    assert "SIGKILL" in died["payload"]["cause"]
    await hosted.until(lambda: hosted.gateway.services.serving.routes.ready("tiny"), 30)
    assert hosted.events("service.restarted") and (await ask(hosted, tokens=2)).error is None


@needs_ray
async def test_what_stands_for_an_engine_ends_and_nothing_is_left_on_a_node(hosted: Hosted, home: Home) -> None:
    await serve(hosted)
    kept = process.read_state(home.path, "llama-server-tiny")
    here = berths()
    assert kept is not None and len(here) == 2, "a keeper and its engine, on the node"
    psutil.Process(kept.keeper_pid).kill()  # and what stands there with it, as at the end of a home's grace
    await hosted.until(lambda: not [each for each in here if each in berths()], 15)
    await hosted.until(lambda: hosted.gateway.services.serving.routes.ready("tiny"), 30)


@needs_ray
async def test_what_no_node_has_room_for_is_said(hosted: Hosted) -> None:
    await hosted.tiny()
    with pytest.raises(FailedPrecondition, match=r"none of the . nodes of the Ray cluster has CPU 64"):
        await hosted.call("engine.start", name="llama-server", model_id="tiny", options={"threads": 64}, launcher="ray")


@needs_ray
async def test_a_node_that_is_killed_under_load_costs_what_it_had_begun_and_its_engine_comes_back(hosted: Hosted, nodes: Nodes) -> None:
    began = time.monotonic()
    service = await serve(hosted, replicas=2)
    ready = time.monotonic() - began
    assert (service["options"]["launcher"], service["ready_replicas"], service["placement"]["device"]) == ("ray", 2, None)
    assert sorted(where(hosted).values()) == sorted(nodes.names), "apart from each other"
    instance = hosted.gateway.services.engines.instance("llama-server-tiny")
    assert hosted.gateway.services.store.read("SELECT count(*) FROM measurements") == [(0,)], "what it takes is taken elsewhere"
    with pytest.raises(AlreadyExists, match=r"options is {.*'launcher': 'ray'}, not"):
        await hosted.call("service.create", model_id="tiny", engine="llama-server", options=OPTIONS)
    lost = where(hosted)["llama-server-tiny"]
    async with asking(hosted, 8, tokens=4, pace=0.02) as results:
        await anyio.to_thread.run_sync(nodes.kill, lost)
        killed, before = time.monotonic(), len(results)
        await hosted.until(lambda: len(results) > before + 40, 30)
        went_on = time.monotonic() - killed
        await hosted.until(lambda: len(found := where(hosted)) == 2 and lost not in found.values(), 90)
        back = time.monotonic() - killed
        count = len(results)
        await hosted.until(lambda: len(results) > count + 40, 30)
    failed = [each for each in results if each.error]
    print(f"ray: 2 replicas ready after {ready:.1f} s; node killed: 40 more answers after {went_on:.1f} s, replica back after {back:.1f} s")
    print(f"ray: {len(results)} requests, {len(failed)} failed, all of them past their first token: {all(each.heard for each in failed)}")
    assert all(each.heard for each in failed) and len(failed) <= 8
    after = hosted.gateway.services.engines.instance("llama-server-tiny")
    assert (after["pid"], after["base_url"]) == (instance["pid"], instance["base_url"]), "Ray replaced it, and we led requests there"
    lines = (await hosted.call("engine.logs", instance_id="llama-server-tiny"))["lines"]
    assert any("is lost, and Ray looks for another" in line for line in lines) and "Ray has it on the node" in lines[-1]
    await hosted.call("service.stop", service_id="tiny")
    await anyio.to_thread.run_sync(lambda: until(lambda: not berths(), 5, "the end of what ran on nodes"))


async def test_a_home_without_a_cluster_says_what_is_missing(home: Home, fixtures: Path, tmp_path: Path) -> None:
    async with paced(home, fixtures, tmp_path) as alone:
        await alone.tiny()
        assert (await alone.call("engine.get", name="llama-server"))["engine"]["launchers"] == ["process"]
        for unit, order in (("engine.start", {"name": "llama-server"}), ("service.create", {"engine": "llama-server"})):
            for act in (alone.gateway.plan, alone.gateway.call):
                with pytest.raises(FailedPrecondition, match=r"config.toml names no cluster: \[engines.ray\] address"):
                    await act(unit, {**order, "model_id": "tiny", "launcher": "ray"})
        assert (await alone.call("service.list"))["services"] == []
