"""Estimates against measurements: `python -m tests.bench.memory [--points N] [--engine NAME] [--gpu-layers N] MODEL.gguf ...`.

Starts an engine for each model at several contexts and requests at once, works every request until its buffers are used, and prints for each
start what the formula said and what the process took at its peak. Then the error of the formula alone, and the error and the coverage of the
interval after learning from one half of the points, on the other half; both ways round, with the halves drawn by a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from aima_lib.infra.home import Home
from aima_lib.runtime import host
from aima_lib.services import learning, memory
from aima_lib.services.measurements import COLUMNS, load_of

MIB = 1 << 20
# Context, requests at once, batch.
SETTINGS = ((512, 1, 512), (2048, 1, 512), (4096, 2, 512), (8192, 1, 512), (8192, 4, 512), (4096, 1, 128), (16384, 1, 512), (2048, 4, 256))
TOML = "[engines]\ngrace_seconds = 2\nprobe_seconds = 1\n[files]\nroots = "


async def measured(paths: Sequence[Path], engine: str, count: int, more: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a start, as the table holds it, with the model's record and the options beside it."""
    with tempfile.TemporaryDirectory(prefix="aima-bench-") as folder:
        home = Home(Path(folder) / "home")
        home.make()
        roots = {str(path.parent) for path in paths}
        named = ", ".join(f'r{number} = "{root}"' for number, root in enumerate(sorted(roots)))
        (home.path / "config.toml").write_text(f"{TOML}{{{named}}}\n", encoding="utf-8")
        async with host(home) as gateway:
            rows: list[dict[str, Any]] = []
            for number, path in enumerate(paths):
                (model,), _ = await gateway.services.models.import_all(str(path), name=f"bench-{number}")
                for context, parallel, batch in SETTINGS[:count]:
                    options = {"context_length": context, "parallel": parallel, "batch_size": batch, **more}
                    rows.append(await one(gateway.services, engine, model, options))
            return rows


async def one(services: Any, engine: str, model: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Start, work, measure, stop."""
    instance = await services.engines.start(engine, model["id"], options)
    address = services.engines.address(instance)
    words = min(options["context_length"] - 64, options["batch_size"] + 64)  # a whole batch and a bit
    body = {"model": model["id"], "max_tokens": 8, "temperature": 0}
    async with anyio.create_task_group() as group:
        for number in range(options["parallel"]):
            prompt = f"{number} " + "word " * words
            group.start_soon(
                lambda prompt=prompt: services.engines.wire.post(address, "/v1/completions", body | {"prompt": prompt}, timeout=900)
            )
    await services.engines.end(instance["id"])
    sql = f"SELECT {', '.join(COLUMNS)}, low_bytes, high_bytes FROM measurements WHERE instance_id = ? ORDER BY started_at DESC LIMIT 1"
    found = services.store.read(sql, (instance["id"],))[0]
    row = dict(zip((*COLUMNS, "low_bytes", "high_bytes"), found, strict=True))
    print(
        f"{model['geometry']['block_count']:>3} layers, {row['context_length']:>6} × {row['parallel']} batch {row['batch_size']:<4}"
        f" formula {row['predicted_bytes'] / MIB:>7.0f}  ready {row['ready_bytes'] / MIB:>7.0f}  peak {row['peak_bytes'] / MIB:>7.0f} MiB"
        f"  off {row['predicted_bytes'] / row['peak_bytes'] - 1:+.1%}",
        flush=True,
    )
    return row | {"model": model, "options": options, "engine": engine}


def judged(known: Sequence[dict[str, Any]], row: dict[str, Any]) -> memory.Memory:
    """What an estimate would have said of a start, had only `known` been measured."""
    load = load_of(row["model"], row["options"], {"type": row["device_kind"], "capabilities": ["cuda"]})
    said = memory.estimate(row["model"]["geometry"], row["model"]["size_bytes"], load.context_length, load.parallel, load)
    ran = learning.Ran(row["engine"], row["version"], load.kind, row["digest"], row["architecture"])
    rows = [other | {"settings": json.loads(other["settings"])} for other in known]
    return learning.corrected(said, rows, ran, load, learning.settings_of(load, row["options"]))


def told(name: str, pairs: Sequence[tuple[memory.Memory, int]]) -> None:
    """Error, coverage and width of some estimates against the peaks."""
    errors = [abs(said["total_bytes"] / peak - 1) for said, peak in pairs]
    inside = [said["low_bytes"] <= peak <= said["high_bytes"] for said, peak in pairs]
    below = [peak <= said["high_bytes"] for said, peak in pairs]
    widths = [(said["high_bytes"] - said["low_bytes"]) / said["total_bytes"] for said, _ in pairs]
    print(
        f"{name:<34} n={len(pairs):<3} error mean {statistics.mean(errors):.1%}, max {max(errors):.1%};"
        f" interval covers {statistics.mean(inside):.0%}, upper edge holds {statistics.mean(below):.0%}, width {statistics.mean(widths):.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--points", type=int, default=len(SETTINGS), help="settings of each model")
    parser.add_argument("--engine", default="llamacpp")
    parser.add_argument("--gpu-layers", type=int)
    parser.add_argument("--rows", type=Path, help="a file of rows: read if it is there, else written")
    given = parser.parse_args()
    more = {} if given.gpu_layers is None else {"gpu_layers": given.gpu_layers}
    if given.rows and given.rows.exists():
        rows = json.loads(given.rows.read_text(encoding="utf-8"))
    else:
        rows = anyio.run(measured, [path.resolve() for path in given.models], given.engine, given.points, more)
    if given.rows:
        given.rows.write_text(json.dumps(rows), encoding="utf-8")
    told("the formula alone", [(judged([], row), row["peak_bytes"]) for row in rows])
    shuffled = random.Random(5).sample(rows, len(rows))
    halves = shuffled[::2], shuffled[1::2]
    learned = [(judged(known, row), row["peak_bytes"]) for known, asked in (halves, halves[::-1]) for row in asked]
    told("after the other half", learned)
    for number, path in enumerate(given.models):
        name = f"bench-{number}"
        strangers = [row for row in rows if row["model"]["id"] != name]
        pairs = [(judged(strangers, row), row["peak_bytes"]) for row in rows if row["model"]["id"] == name]
        if strangers:
            told(f"{path.parent.name[:22]}, after others", pairs)
    told("the very same start again", [(judged([row], row), row["peak_bytes"]) for row in rows])


if __name__ == "__main__":
    main()
