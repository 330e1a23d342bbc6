"""An engine that the kernel ends for want of memory in its control group: seen, explained, and started anew."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aima_lib.engines.cause import cause
from aima_lib.infra.home import Home
from aima_lib.launchers.keeper import memory_groups
from tests.engines.conftest import Hosted
from tests.engines.pacing import ask, paced, serve

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
LIMIT_MIB = 160


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    """A control group with so much memory, beneath our own."""
    found = memory_groups(os.getpid())
    if not found:
        pytest.skip("no control group bounds memory here")
    made = found[0] / f"aima-{tmp_path.name[-20:]}"
    try:
        made.mkdir()
        limit = made / ("memory.max" if (made / "memory.max").exists() else "memory.limit_in_bytes")
        limit.write_text(str(LIMIT_MIB << 20), encoding="utf-8")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield made
    made.rmdir()


@pytest.fixture
async def hosted(home: Home, fixtures: Path, tmp_path: Path, group: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home whose llama-server goes into that group as it begins."""
    async with paced(home, fixtures, tmp_path) as found:
        script = tmp_path / "llama-server"
        lines = script.read_text(encoding="utf-8").splitlines()
        script.write_text("\n".join([lines[0], f"echo $$ > {group}/cgroup.procs", *lines[1:]]), encoding="utf-8")
        yield found


async def test_an_engine_that_runs_out_of_its_groups_memory_is_explained_and_started_anew(hosted: Hosted) -> None:
    await serve(hosted)
    failed = await ask(hosted, tokens=1, hoard=4 * LIMIT_MIB)
    died = hosted.events("engine.error")
    assert died and failed.error is not None
    said = f"it was ended by SIGKILL: by the kernel, out of memory in its control group of {LIMIT_MIB} MiB"
    assert {event["payload"]["cause"] for event in died} == {said}
    assert (await hosted.call("service.start", service_id="tiny"))["service"]["status"] == "running"
    assert (await ask(hosted, tokens=1)).error is None, "another request than the one that was tried again and again"
    assert hosted.events("service.restarted")[0]["payload"]["cause"] == said


def test_what_a_kernel_out_of_memory_tells_of_an_end() -> None:
    group, machine = {"where": "group", "limit_bytes": 1 << 30}, {"where": "machine", "limit_bytes": None}
    assert cause([], -signal.SIGKILL, served=True, oom=machine).endswith(
        "most likely by the kernel, which ran out of memory on this machine"
    )
    assert cause([], 0, served=True, oom=machine) == "it ended with status 0", "somebody else's process, for all that is known"
    part = "it ended with status 0, and the kernel had killed a process meanwhile, out of memory in its control group of 1,024 MiB"
    assert cause([], 0, served=True, oom=group) == part, "as of vLLM, whose server ends so when its worker is killed"
