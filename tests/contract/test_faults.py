"""Events that only faults cause, caused for real: on a second host of the installed wheel, whose engines are killed and stopped."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import psutil
import pytest
from anyio.from_thread import BlockingPortal

from aima_lib import Aima, AimaError
from tests.contract.faces import REGISTRY, mcp_http
from tests.contract.watching import HttpWatch, ListenWatch, SubscribeWatch
from tests.world import HostProcess, World, furnish, until

pytestmark = pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed")
FAULTS = """
[devices]
sample_seconds = 0.1
memory_alert_fraction = {fraction}
"""
QUICK = "[engines]\nprobe_seconds = 0.2\nrestart_limit = 2\nmemory_limit_gib = 4\n"
Event = Mapping[str, Any]


class Faulty:
    """A host to do harm to."""

    def __init__(self, host: HostProcess, aima: Aima) -> None:
        self.host, self.aima = host, aima

    def engine(self) -> int:
        """The engine process of the service `tiny`."""
        service = self.aima.call("service.status", {"service_id": "tiny"})
        return int(service["instance"]["pid"])

    def events(self, type: str) -> list[Event]:
        found: list[Event] = self.aima.call("event.list", {"after": 0, "types": [type], "limit": 1000})["events"]
        for event in found:
            assert REGISTRY[type].payload.first_error(event["payload"]) is None
        return found

    def heard(self, type: str) -> Event:
        """The newest event of the type, once there is one."""
        return until(lambda: self.events(type), 30, type)[-1]


@pytest.fixture(scope="module")
def faulty(world: World, config: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    settings = config.replace("[engines]\n", QUICK)
    host = HostProcess(world.host.python, tmp_path_factory.mktemp("faulty") / "home", world.folder, settings).start()
    try:
        with Aima(host.home.path) as aima:
            furnish(aima)
            yield Faulty(host, aima)
            world.note(host.counted())
    finally:
        host.stop()


def test_an_engine_that_hangs_is_unhealthy_until_it_goes_on(faulty: Faulty) -> None:
    pid = faulty.engine()
    os.kill(pid, signal.SIGSTOP)
    try:
        changed = faulty.heard("engine.health_changed")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert changed["payload"]["old_status"] == "healthy"
    until(lambda: faulty.heard("engine.health_changed")["payload"]["new_status"] == "healthy", 30, "its health")


def test_a_request_that_fails_says_so_without_its_prompt(faulty: Faulty) -> None:
    secret = "confidential "
    with pytest.raises(AimaError) as raised:
        faulty.aima.call("inference.chat", {"model": "tiny", "messages": [{"role": "user", "content": secret * 3000}]})
    failed = faulty.heard("inference.request_failed")
    assert failed["payload"]["code"] == raised.value.code
    assert secret.strip() not in str(failed)


def test_an_update_that_does_not_fit_is_rolled_back(faulty: Faulty) -> None:
    pid, options = faulty.engine(), {"parallel": 64, "context_length": 1_048_576}
    with pytest.raises(AimaError, match="was not updated"):
        faulty.aima.call("service.update", {"service_id": "tiny", "options": options})
    assert "tiny needs" in faulty.heard("service.rolled_back")["payload"]["cause"] and faulty.engine() == pid


def test_a_killed_engine_is_restarted_and_in_the_end_given_up(faulty: Faulty) -> None:
    def status() -> str:
        return str(faulty.aima.call("service.get", {"service_id": "tiny"})["service"]["status"])

    os.kill(faulty.engine(), signal.SIGKILL)
    assert "tiny" in str(faulty.heard("engine.error"))
    assert faulty.heard("service.restarted")["payload"]["attempt"] == 1
    while status() != "failed":
        until(lambda: status() in ("running", "failed"), 30, "the restart")
        if status() == "running":
            os.kill(faulty.engine(), signal.SIGKILL)
            until(lambda: status() != "running", 30, "the death")
    assert faulty.heard("service.failed")["payload"]["cause"]
    faulty.aima.call("service.start", {"service_id": "tiny"})


def test_a_service_that_loses_one_of_two_engines_is_degraded_and_an_idle_one_is_unloaded(faulty: Faulty) -> None:
    def engines() -> list[dict[str, Any]]:
        status = faulty.aima.call("service.status", {"service_id": "spare"})
        return [dict(each) for each in status["instances"] if each["id"].startswith("r2.") and each["status"] == "ready"]

    options = {"context_length": 256}
    faulty.aima.call("service.create", {"model_id": "tiny", "name": "spare", "options": options, "replicas": 2, "idle_unload_seconds": 60})
    while not faulty.events("service.degraded"):
        until(lambda: engines() or faulty.events("service.degraded"), 30, "the second engine")
        for each in engines():
            os.kill(each["pid"], signal.SIGKILL)
            until(lambda: not engines() or faulty.events("service.degraded"), 30, "its death")
    service = faulty.aima.call("service.get", {"service_id": "spare"})["service"]
    assert (service["status"], service["health"], service["ready_replicas"]) == ("running", "degraded", 1)
    faulty.aima.call("service.create", {"model_id": "tiny", "name": "spare", "options": options, "idle_unload_seconds": 1})
    assert faulty.heard("service.unloaded")["payload"]["reason"] == "idle"
    until(lambda: faulty.aima.call("service.get", {"service_id": "spare"})["service"]["status"] == "stopped", 30, "its end")
    answer = faulty.aima.call("inference.complete", {"model": "spare", "prompt": "a", "max_tokens": 1})
    assert answer["finish_reason"] == "length"


def test_a_slot_that_is_preemptible_gives_way_to_one_that_needs_the_room(world: World) -> None:
    """Each would fit alone, however much of this machine's memory others take meanwhile."""
    [cpu] = [row for row in world.call("resource.status")["memory"] if row["device_id"] == "cpu"]
    size = int(0.6 * cpu["usable_bytes"])
    world.call("resource.allocate", name="yielding", type="container", memory_bytes=size, device_id="cpu", preemptible=True)
    world.call("resource.allocate", name="taking", type="container", memory_bytes=size, device_id="cpu")
    [event] = world.call("event.list", after=0, types=["resource.preemption"])["events"]
    assert (event["subject"], event["payload"]["preempted_by"]) == ("yielding", "taking")
    world.call("resource.release", slot_id="taking")


def used(http: httpx.Client) -> tuple[int, int]:
    """Bytes of memory in use, and in all, as AIMA sees them."""
    [cpu] = http.get("/units/device/metrics", params={"device_id": "cpu"}).json()["devices"]
    return int(cpu["now"]["memory_used_bytes"]), int(cpu["now"]["memory_total_bytes"])


def test_memory_that_fills_up_is_told_and_seen_by_whoever_watches(
    world: World, config: str, portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The threshold lies a little above what is in use; then this test takes twice that little."""
    for _ in range(3):  # somebody else's process may have taken that little first
        busy, total = used(world.http)
        edge = busy / total + 0.02
        kept = f"[engines]\nmemory_reserve_fraction = {min(0.9, 1 - edge)}\n"  # so that memory is short where the alert comes, or later
        settings = config.replace("[engines]\n", kept) + FAULTS.format(fraction=min(0.999, edge))
        host = HostProcess(world.host.python, tmp_path_factory.mktemp("full") / "home", world.folder, settings).start()
        try:
            if seen_by_watchers(host, portal, max(int(0.04 * total), int(0.12 * total) - busy)):
                world.note(host.counted())
                return
        finally:
            host.stop()
    raise AssertionError("this machine's memory moves too much to tell")


def seen_by_watchers(host: HostProcess, portal: BlockingPortal, size: int) -> bool:
    """Take the memory, and see every watcher hear of it. False when the alert came before that."""
    uris = {"device.metrics_by_id": "aima://device/cpu/metrics", "device.health_by_id": "aima://device/cpu/health"}
    with ExitStack() as stack:
        http = stack.enter_context(host.client())
        subscriber = SubscribeWatch(stack, portal, host)
        listener = mcp_http(stack, portal, host, "2026-07-28").client
        watches = {name: HttpWatch(stack, http, uri) for name, uri in uris.items()}
        listens = [ListenWatch(stack, portal, listener, uri) for uri in uris.values()]
        for uri in uris.values():
            subscriber.subscribe(uri)
        if alerts(http):
            return False
        with filled(size):
            for name, watch in watches.items():
                assert REGISTRY[name].output.first_error(watch.update()) is None
            for listen in listens:
                listen.update()
            assert {subscriber.told(), subscriber.told()} == set(uris.values())
            [alert] = alerts(http)
            until(lambda: told(http, "resource.pressure_warning"), 10, "the warning")
        assert alert["payload"]["metric"] == "memory_fraction"
        assert REGISTRY["device.metrics_alert"].payload.first_error(alert["payload"]) is None
    return True


def alerts(http: httpx.Client) -> list[Event]:
    return told(http, "device.metrics_alert")


def told(http: httpx.Client, type: str) -> list[Event]:
    found: list[Event] = http.get("/units/event/list", params={"types": type, "after": 0}).json()["events"]
    return found


class filled:
    """So many bytes of memory, taken and given back."""

    def __init__(self, size: int) -> None:
        self._size = size // mmap.PAGESIZE * mmap.PAGESIZE

    def __enter__(self) -> None:
        assert psutil.virtual_memory().available > 2 * self._size, "this machine has too little memory for the test"
        self._taken = mmap.mmap(-1, self._size)
        block = b"\1" * (16 << 20)
        for start in range(0, self._size - len(block), len(block)):
            self._taken[start : start + len(block)] = block

    def __exit__(self, *reason: object) -> None:
        self._taken.close()
