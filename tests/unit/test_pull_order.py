"""Which pull goes next where only so many go at once, and how a cap is shared among those that do."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import OWNER
from aima_lib.gateway import Gateway
from aima_lib.infra import line as module
from aima_lib.infra.home import Home
from aima_lib.infra.line import Line, Place
from aima_lib.infra.ranges import arrived
from aima_lib.runtime import host
from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf

pytestmark = pytest.mark.anyio
MIB = 1 << 20
FIRST = "/a/m0/m0-Q8_0.gguf"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    with Hub(tmp_path / "hub") as running:
        for number in range(5):
            running.add_repo(f"a/m{number}", {f"m{number}-Q8_0.gguf": tiny + bytes([number])})
        yield running


@pytest.fixture
def gate(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first model comes when it opens."""
    opened = threading.Event()

    def fault(path: str) -> Fault:
        if path == FIRST:
            opened.wait(30)
        if path.startswith("/api/models/a/m3/") and hub.requests[path] > 1:
            hub.wait(0.3)  # asked again, it takes longer than all others to say what there is to fetch
        return Fault()

    monkeypatch.setattr(hub, "fault", fault)
    yield opened
    opened.set()


@asynccontextmanager
async def hosting(folder: Path, hub: Hub, downloads: str) -> AsyncIterator[Gateway]:
    home = Home(folder)
    home.make()
    (folder / "config.toml").write_text(f"{hub.config}[downloads]\n{downloads}\n", encoding="utf-8")
    async with host(home) as gateway:
        yield gateway


async def until(found: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not found():
            await anyio.sleep(0.01)


async def ask(gateway: Gateway, number: int, **more: Any) -> str:
    run = await gateway.start("model.pull", {"repo": f"a/m{number}", **more})
    return str(run["id"])


def told(gateway: Gateway, run_id: str) -> str:
    """What a run says that it is doing, without the model's name."""
    return str((gateway.runs.get(run_id)["progress"] or {"message": ""})["message"]).partition(": ")[2]


def waits(gateway: Gateway, runs: dict[int, str], behind: dict[int, int]) -> bool:
    said = {number: f"waiting behind {ahead} pull{'' if ahead == 1 else 's'}" for number, ahead in behind.items()}
    return all(told(gateway, runs[number]) == text for number, text in said.items())


async def came(gateway: Gateway, count: int) -> list[str]:
    """Models in the order in which they came, when so many are here."""
    await until(lambda: gateway.services.models.list()[1] == count)
    return [model["id"].removesuffix("-q8_0") for model in reversed(gateway.services.models.list()[0])]


async def held_up(gateway: Gateway, hub: Hub) -> dict[int, str]:
    """One pull under way that gets no further; three behind it, the last asked for the most urgent."""
    runs = {0: await ask(gateway, 0)}
    await until(lambda: hub.requests[FIRST] > 0)
    for number, priority, ahead in ((1, 0, 1), (2, 0, 2), (3, 5, 1)):
        runs[number] = await ask(gateway, number, priority=priority)
        await until(lambda number=number, ahead=ahead: waits(gateway, runs, {number: ahead}))
    await until(lambda: waits(gateway, runs, {3: 1, 1: 2, 2: 3}))
    return runs


async def test_an_urgent_pull_goes_before_those_that_wait(hub: Hub, tmp_path: Path, gate: threading.Event) -> None:
    async with hosting(tmp_path / "home", hub, "at_once = 1") as gateway:
        await held_up(gateway, hub)
        assert [path for path in hub.requests if path.endswith("gguf") and "resolve" not in path] == [FIRST], "what waits fetches nothing"
        gate.set()
        assert await came(gateway, 4) == ["m0", "m3", "m1", "m2"]
        events = (await gateway.call("event.list", {"after": 0, "types": ["model.pull_progress"], "limit": 1000}))["events"]
        behind = [event["payload"]["waiting_behind"] for event in events if event["payload"]["model_id"] == "m2-q8_0"]
        assert behind[:2] == [2, 3] and behind[-1] == 0


async def test_the_order_is_the_same_after_the_hosts_end(
    hub: Hub, tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(tmp_path / "home", hub, "at_once = 1") as gateway:
        await held_up(gateway, hub)
    gate.set()
    monkeypatch.setattr(module, "COURTESY_SECONDS", 15.0)  # a busy machine takes its time to ask again for all of them
    async with hosting(tmp_path / "home", hub, "at_once = 1") as gateway:
        assert await came(gateway, 4) == ["m3", "m0", "m1", "m2"]


async def test_whoever_wants_a_pull_more_hastens_it_for_all(hub: Hub, tmp_path: Path, gate: threading.Event) -> None:
    async with hosting(tmp_path / "home", hub, "at_once = 1") as gateway:
        runs = await held_up(gateway, hub)
        again = await ask(gateway, 2, priority=9)
        await until(lambda: waits(gateway, runs | {4: again}, {2: 1, 4: 1, 3: 2, 1: 3}))
        await gateway.runs.cancel(runs[3])
        await until(lambda: waits(gateway, runs, {1: 2}))
        gate.set()
        assert await came(gateway, 3) == ["m0", "m2", "m1"]


async def test_of_a_cap_most_is_for_the_urgent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = (tmp_path / "tiny.gguf").read_bytes()
    for name in ("slow", "fast"):
        hub.add_repo(f"a/{name}", {f"{name}-Q8_0.gguf": tiny + name.encode() * ((12 * MIB - len(tiny)) // 4)})
    asked = {f"/a/{name}/{name}-Q8_0.gguf": threading.Event() for name in ("slow", "fast")}

    def fault(path: str) -> Fault:
        if path in asked:  # neither comes before both are asked for
            asked[path].set()
            assert all(each.wait(30) for each in asked.values())
        return Fault()

    monkeypatch.setattr(hub, "fault", fault)
    async with hosting(tmp_path / "home", hub, "at_once = 2\nlanes = 1\nmib_per_second = 5") as gateway:
        slow, fast = [str((await gateway.start("model.pull", {"repo": f"a/{name}", "priority": each}))["id"]) for name, each in
                      (("slow", 0), ("fast", 1))]  # fmt: skip
        await until(lambda: got(gateway, slow) > 0 and got(gateway, fast) > 0)
        before = {run: got(gateway, run) for run in (slow, fast)}
        await until(lambda: got(gateway, fast) - before[fast] > 5 * MIB)
        gained = {run: got(gateway, run) - before[run] for run in (slow, fast)}
    assert 0 < gained[slow] < 0.75 * gained[fast], gained  # a half, and what is on its way; an equal share would be all of it


async def test_a_freeze_pauses_a_pull_and_a_cancel_ends_it(hub: Hub, tmp_path: Path) -> None:
    path = "/a/m4/m4-Q8_0.gguf"
    hub.faults = {path: Fault(bytes_per_second=1_000_000)}
    size = hub.files("a/m4")["m4-Q8_0.gguf"].stat().st_size
    partial = tmp_path / "home/models/partial"
    async with hosting(tmp_path / "home", hub, "") as gateway:
        run = await ask(gateway, 4)
        await until(lambda: got(gateway, run) > size // 3)
        await gateway.call("system.freeze", {})
        kept, sent = sum(arrived(part) for part in partial.glob("*/*.part")), hub.counts[path]
        assert kept > 0, "what a freeze stops goes on from what came"
        hub.faults = {}
        await gateway.services.freeze.thaw(OWNER)
        await gateway.runs.recover()
        assert await came(gateway, 1) == ["m4"]
        assert hub.counts[path] - sent - (size - kept) < 256 << 10, "no more than what was on its way"
        hub.faults = {FIRST: Fault(bytes_per_second=1_000_000)}
        run = await ask(gateway, 0)
        await until(lambda: hub.counts[FIRST] > 0)
        await gateway.runs.cancel(run)
        assert list(partial.iterdir()) == []


async def test_a_cancel_may_keep_what_came_for_the_same_pull(hub: Hub, tmp_path: Path) -> None:
    path = "/a/m4/m4-Q8_0.gguf"
    size = hub.files("a/m4")["m4-Q8_0.gguf"].stat().st_size
    async with hosting(tmp_path / "home", hub, "") as gateway:
        hub.faults = {path: Fault(bytes_per_second=1_000_000)}
        run = await ask(gateway, 4)
        await until(lambda: got(gateway, run) > size // 3)
        assert (await gateway.call("run.cancel", {"run_id": run, "keep": True}))["run"]["status"] == "cancelled"
        sent = hub.counts[path]
        hub.faults = {}
        await gateway.call("model.pull", {"repo": "a/m4"})
        assert hub.counts[path] - sent < size - size // 3 + (256 << 10), "it went on from what had come"


def got(gateway: Gateway, run_id: str) -> int:
    return int((gateway.runs.get(run_id)["progress"] or {}).get("completed") or 0)


async def test_one_that_never_takes_its_place_holds_nobody_up_for_long() -> None:
    line, absent = Line(1), Place(9)
    with line.coming(absent):
        absent.until -= 1.9
        with anyio.fail_after(10):
            async with line.turn(Place()):
                pass
