"""A pull against `curl` of the same file from the same server, hashing against `sha256sum`, and lists of many models: `python tests/bench/pull.py`.

AIMA_BENCH_MIB is the size of the file (512). Wall times are of a busy machine: the ratios count.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import measure

from aima_lib.infra.blobs import digest
from aima_lib.infra.store import Store
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import shop

MIB = 1 << 20
SIZE = int(os.environ.get("AIMA_BENCH_MIB", "512")) * MIB
ROUNDS = int(os.environ.get("AIMA_BENCH_ROUNDS", "3"))
REPO = "bench/large-GGUF"


def write(path: Path, size: int) -> None:
    """A GGUF with noise after its last tensor."""
    write_tiny_gguf(path)
    noise, left = random.Random(1).randbytes(16 * MIB), size - path.stat().st_size
    with path.open("ab") as file:
        while left > 0:
            left -= file.write(noise[:left])


@contextmanager
def hub(folder: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "tests.hub", "--root", str(folder)]
    with subprocess.Popen(command, cwd=measure.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def child(arguments: list[str]) -> dict[str, float]:
    """Run this file as a process of its own; what it says."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def pull(home: Path, url: str, cdn: str, name: str) -> dict[str, float]:
    toml = f'[sources]\nhuggingface_endpoint = "{url}"\n[egress]\nallow = ["{cdn.partition("//")[2]}"]\n'
    if lanes := os.environ.get("AIMA_BENCH_LANES"):
        toml += f"[downloads]\nlanes = {lanes}\n"
    async with shop(home, toml, stall_seconds=60, pace=None) as here:
        await here.models.pull(REPO, file="warm.gguf")  # what the first pull loads, it loads once
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        await here.models.pull(REPO, file=name)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": took, "cpu": cpu, "rss_mib": after.ru_maxrss / 1024, "idle_mib": before.ru_maxrss / 1024}


def curl(url: str, target: Path) -> dict[str, float]:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["curl", "-sfL", "-o", str(target), url], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu": cpu}


def against_curl(folder: Path) -> None:
    source = folder / "hub/hf" / REPO
    source.mkdir(parents=True)
    sizes = {"large.gguf": SIZE, "small.gguf": SIZE // 8}
    for name, size in {**sizes, "warm.gguf": MIB}.items():
        write(source / name, size)
    mine: dict[str, list[dict[str, float]]] = {name: [] for name in sizes}
    theirs: list[dict[str, float]] = []
    with hub(folder / "hub") as at:
        plain = f"{at['url']}/{REPO}/resolve/main/large.gguf"
        curl(plain, folder / "warm.bin")
        child(["pull", str(folder / "warm"), at["url"], at["cdn"], "large.gguf"])
        for number in range(ROUNDS):
            theirs.append(curl(plain, folder / f"curl-{number}.bin"))
            for name in sizes:  # the large one first, so that both had the same machine
                mine[name].append(child(["pull", str(folder / f"home-{name}-{number}"), at["url"], at["cdn"], name]))
            for path in folder.glob(f"*-{number}*"):
                subprocess.run(["rm", "-rf", str(path)], check=True)
    large = mine["large.gguf"]
    ours, other = (statistics.median(each["seconds"] for each in taken) for taken in (large, theirs))
    rate, ratio = SIZE / MIB, statistics.median(them["seconds"] / us["seconds"] for us, them in zip(large, theirs, strict=True))
    print(f"pull, verified   {rate / ours:>8.0f} MiB/s   curl {rate / other:>8.0f} MiB/s   ratio, of pairs {ratio:.2f}", flush=True)
    cpu, plain_cpu = (min(each["cpu"] for each in taken) / SIZE * (1 << 30) for taken in (large, theirs))
    print(f"CPU              {cpu:>8.2f} s a GiB   curl {plain_cpu:.2f}, which does not hash", flush=True)
    for name, size in sizes.items():
        rss = max(each["rss_mib"] for each in mine[name])
        print(f"peak RSS         {rss:>8.0f} MiB for a file of {size // MIB} MiB", flush=True)


def hashing(folder: Path) -> None:
    path = next((folder / "hub/hf" / REPO).glob("large*"))
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        digest(path)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        subprocess.run(["sha256sum", str(path)], stdout=subprocess.DEVNULL, check=True)
        theirs.append(time.perf_counter() - began)
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"hashing          {SIZE / MIB / mine:>8.0f} MiB/s   sha256sum {SIZE / MIB / other:>8.0f} MiB/s   ratio {other / mine:.2f}",
        flush=True,
    )


async def lists(folder: Path) -> None:
    """The p99 of model.list over 100 models and over 10,000, in turns."""
    async with shop(folder / "few") as few, shop(folder / "many") as many:
        for here, count in ((few, 100), (many, 10_000)):
            await fill(here.store, count)
        taken: dict[int, list[float]] = {100: [], 10_000: []}
        for _ in range(400):
            for here, count in ((few, 100), (many, 10_000)):
                began = time.perf_counter()
                found, total = here.models.list(limit=100)
                taken[count].append(time.perf_counter() - began)
                assert (len(found), total) == (100, count)
        p99 = {count: statistics.quantiles(values, n=100)[98] for count, values in taken.items()}
        p50 = {count: statistics.median(values) for count, values in taken.items()}
    ratio = p99[10_000] / p99[100]
    print(f"model.list p99   {p99[100] * 1e3:>8.2f} ms of 100   {p99[10_000] * 1e3:.2f} ms of 10,000   ratio {ratio:.2f}", flush=True)
    print(f"model.list p50   {p50[100] * 1e3:>8.2f} ms of 100   {p50[10_000] * 1e3:.2f} ms of 10,000", flush=True)


async def fill(store: Store, count: int) -> None:
    source = dict.fromkeys(("repo", "revision", "commit", "file", "quantization", "path")) | {"kind": "local"}
    async with anyio.create_task_group() as group:
        for number in range(count):
            file = {"name": "m.gguf", "size_bytes": 1, "sha256": f"{number:064x}"}
            model = {"id": f"m-{number}", "type": "llm", "status": "ready", "format": "gguf", "digest": f"sha256:{number:064x}"}
            group.start_soon(store.insert, "model", model | {"files": [file], "source": source, "geometry": {"x": ["y"] * 100}})


def main() -> None:
    if sys.argv[1:2] == ["pull"]:
        print(json.dumps(anyio.run(pull, Path(sys.argv[2]), *sys.argv[3:6], backend_options={"use_uvloop": True})))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        against_curl(folder)
        hashing(folder)
        anyio.run(lists, folder)


if __name__ == "__main__":
    main()
