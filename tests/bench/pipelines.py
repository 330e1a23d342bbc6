"""Durable steps a second, and from the start of a run of ten steps to its end: AIMA against DBOS (on SQLite) and Prefect, where they are
installed; then whether a step costs the same after a hundred runs and after many.

`python tests/bench/pipelines.py [RUNS [PYTHON]]`: some minutes, and longer with many recorded RUNS (100,000 is what we publish). PYTHON has the
others installed, where this environment should not. Each engine has a process and a folder of its own, in turns. Ratios are what counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import measure

assert measure.ROOT
STEPS, ROUNDS, WIDE = 10, 3, 64
ANNOTATIONS = {"readOnlyHint": False, "idempotentHint": False, "destructiveHint": False, "openWorldHint": False}
HANDLERS = """
@handles("noop.do")
async def do(ctx):
    return {}
"""
Run = Callable[[], Awaitable[object]]


async def timed(run: Run, seconds: float = 3.0, *, at_once: bool = True) -> dict[str, float]:
    """How it goes one run at a time, and 64 at once where that ends in a while."""
    for _ in range(5 if at_once else 1):
        await run()
    alone, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await run()
        alone.append(time.perf_counter() - began)
    latency, rate = statistics.median(alone), len(alone) * STEPS / sum(alone)
    if not at_once:
        return {"latency": latency, "rate": rate}
    done, began = 0, time.perf_counter()

    async def again() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await run()
            done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(WIDE):
            tasks.start_soon(again)
    return {"latency": latency, "rate": rate, "wide_rate": done * STEPS / (time.perf_counter() - began)}


async def ours(folder: Path, shape: str) -> dict[str, float]:
    """AIMA: ten calls of a command that may not be done twice, each on record before and after, and in the audit log."""
    async with hosted(folder) as gateway:
        await gateway.call("pipeline.create", document(shape))
        return await timed(lambda: gateway.call("pipeline.run", {"pipeline_id": "noop"}))


def document(shape: str) -> Mapping[str, Any]:
    def needs(place: int) -> list[str]:
        return [f"s{place - 1}"] if place and shape == "chain" else []

    return {"name": "noop", "steps": [{"id": f"s{i}", "type": "noop.do", "depends_on": needs(i)} for i in range(STEPS)]}


def hosted(folder: Path) -> Any:
    from aima_lib.infra.home import Home
    from aima_lib.runtime import host
    from tests.served import registry
    from tests.workshop import unit

    home = Home(folder / "home")
    home.make()
    known, _ = registry(folder, [unit("command", "noop.do", scope="write", annotations=ANNOTATIONS)], HANDLERS)
    return host(home, registry=known)


async def dbos(folder: Path, shape: str) -> dict[str, float]:
    """DBOS: a workflow of ten asynchronous steps, its state in SQLite."""
    from dbos import DBOS

    url = f"sqlite:///{folder}/dbos.sqlite"
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.step()
    async def step(place: int) -> int:
        return place

    @DBOS.workflow()
    async def chain() -> int:
        for place in range(STEPS):
            await step(place)
        return STEPS

    @DBOS.workflow()
    async def wide() -> int:
        await asyncio.gather(*(step(place) for place in range(STEPS)))
        return STEPS

    DBOS.launch()
    try:
        return await timed(chain if shape == "chain" else wide)
    finally:
        DBOS.destroy()


async def prefect(folder: Path, shape: str) -> dict[str, float]:
    """Prefect: a flow of ten tasks, with its own server, which it starts for itself, on SQLite."""
    os.environ |= {"PREFECT_HOME": str(folder), "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    from prefect import flow, task
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

    @task
    async def step(place: int) -> int:
        return place

    @flow
    async def chain() -> int:
        for place in range(STEPS):
            await step(place)
        return STEPS

    @flow
    async def wide() -> int:
        await asyncio.gather(*(step(place) for place in range(STEPS)))
        return STEPS

    with temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120}):
        return await timed(chain if shape == "chain" else wide, 15.0, at_once=False)  # 64 did not end within minutes


async def flat(folder: Path, most: int) -> None:
    """What a run costs in a home with few recorded runs, and in one with `most`, in turns: each recorded run has ten steps."""
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    async with hosted(folder / "few") as few, hosted(folder / "many") as many:
        for gateway in (few, many):
            await gateway.call("pipeline.create", document("chain"))
            for _ in range(100):
                await gateway.call("pipeline.run", {"pipeline_id": "noop"})
        await fill(many, most - 100)
        await many.services.store.submit(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

        def run(gateway: Any) -> measure.Call:
            return lambda: gateway.call("pipeline.run", {"pipeline_id": "noop"})

        crowded, empty = await measure.compare(run(many), run(few), 30.0, 10)
        measure.say(f"a run of {STEPS} steps with {many.services.store.count('run')} recorded", crowded, empty, "with few")


async def fill(gateway: Any, count: int) -> None:
    """Copies of a recorded run, under new names, with its steps and its entries: as many as asked for."""
    [run] = gateway.services.store.find("run", limit=1, unit="pipeline.run")
    flow = gateway.services.store.read("SELECT seq FROM flows WHERE run_id = ?", (run["id"],))[0][0]

    def copy(db: Any, start: int, end: int) -> None:
        for number in range(start, end):
            id = f"pipeline-run-copy{number * 7919 % 1_000_003}"
            db.execute("INSERT INTO documents VALUES ('run', ?, ?)", (id, json.dumps({**run, "id": id})))
            db.execute(
                "INSERT INTO flows (run_id, pipeline_id, version, depth, state, began_at) "
                "SELECT ?, pipeline_id, version, depth, state, began_at FROM flows WHERE seq = ?",
                (id, flow),
            )
            columns = "step, item, undo, status, attempts, ordinal, approval_id, started_at, finished_at, output, error"
            db.execute(f"INSERT INTO steps SELECT ?, {columns} FROM steps WHERE flow = ?", (db.last_insert_rowid(), flow))

    for start in range(0, count, 2000):
        await gateway.services.store.submit(lambda db, start=start: copy(db, start, min(start + 2000, count)))


ENGINES = {"aima": ours, "dbos": dbos, "prefect": prefect}


def measured(python: str, name: str, shape: str) -> dict[str, float] | None:
    """One engine's figures, from a process of its own."""
    done = subprocess.run([python, __file__, "--one", name, shape], capture_output=True, text=True, check=False)
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if "Error" in line] or [str(done.returncode)]
        print(f"{name} did not run: {wrong[-1].strip()[:300]}", flush=True)
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(most: int, peers: str) -> None:
    pythons = {"aima": sys.executable}
    for name in ("dbos", "prefect"):
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
        if subprocess.run([peers, "-c", find], check=False).returncode:
            print(f"{name} is not installed: pip install {name}")
        else:
            pythons[name] = peers
    for shape in ("chain", "fan"):
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
        for turn in range(ROUNDS):  # in turns, so that a noisy moment hits all
            for name, python in pythons.items():
                if turn and name == "prefect":
                    continue  # minutes each time, and nowhere near
                if (found := measured(python, name, shape)) is not None:
                    rounds[name].append(found)
        median = {name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in rounds.items() if found}
        mine = median["aima"]
        for name, other in median.items():
            line = (
                f"{shape:<6}{name:<8} a run of {STEPS}: {other['latency'] * 1e3:>8.1f} ms   steps/s, 1 run at a time: {other['rate']:>7.0f}"
            )
            line += f"   AIMA: {other['latency'] / mine['latency']:>5.1f}× sooner, {mine['rate'] / other['rate']:>5.1f}× the steps"
            if "wide_rate" in other:
                line += f"   {WIDE} at once: {other['wide_rate']:>7.0f}, AIMA {mine['wide_rate'] / other['wide_rate']:.1f}×"
            print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(flat, Path(folder), most)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(anyio.run(ENGINES[sys.argv[2]], Path(place), sys.argv[3])))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 10_000, sys.argv[2] if sys.argv[2:] else sys.executable)
