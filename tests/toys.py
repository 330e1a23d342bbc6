"""Units for tests of pipelines: each says in a file what it does, so that a test can count it after whatever happened to the host.

A line is appended at once and in one piece, `WORD begin` when a handler begins and `WORD done` when it is about to return.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.workshop import unit

TEXT = {"type": "string", "description": "A text."}
NUMBER = {"type": "number", "description": "A number.", "default": 0}
ANY = {"description": "Any value."}
OUTPUT = {
    "type": "object",
    "required": ["value"],
    "additionalProperties": False,
    "properties": {"value": ANY, "others": {"type": "integer", "description": "How many of its kind were under way."}},
}


def _input(**properties: Any) -> dict[str, Any]:
    required = [key for key, spec in properties.items() if "default" not in spec and spec is not ANY]
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _hints(idempotent: bool, destructive: bool = False) -> dict[str, Any]:
    return {"readOnlyHint": False, "idempotentHint": idempotent, "destructiveHint": destructive, "openWorldHint": False}


WORK = {"word": TEXT, "value": ANY, "seconds": NUMBER, "fail": {"type": "string", "description": "A code to fail with.", "default": ""}}
TIMES = {"type": "integer", "description": "How often it fails before it does not.", "default": 0}


def _work(kind: str, name: str, **keys: Any) -> dict[str, Any]:
    return unit(kind, name, inputSchema=_input(**WORK, times=TIMES), outputSchema=OUTPUT, primary="value", **keys)


TOYS = (
    _work("query", "toy.look"),
    _work("command", "toy.once", scope="write", annotations=_hints(False)),
    _work("command", "toy.again", scope="write", annotations=_hints(True)),
    _work("command", "toy.ask", scope="inference", annotations=_hints(False)),
    _work("command", "toy.long", scope="write", durable=True, annotations=_hints(True)),
    _work("command", "toy.brief", scope="write", durable=True, annotations=_hints(False)),
    _work("command", "toy.burn", scope="delete", annotations=_hints(False, True)),
    unit(
        "query",
        "toy.meet",
        inputSchema=_input(word=TEXT, count={"type": "integer", "description": "How many there must be."}),
        outputSchema=OUTPUT,
    ),
)
HANDLERS = """
import os
from pathlib import Path
from collections import Counter

FOLDER = [os.environ.get("AIMA_TOYS", "")]
gather = {}
active = Counter()
most = Counter()

def note(line):
    descriptor = os.open(os.path.join(FOLDER[0], "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (line + "\\n").encode())
    finally:
        os.close(descriptor)

def failures(word):
    path = Path(FOLDER[0]) / "log"
    return path.read_text().splitlines().count(f"{word} failed") if path.exists() else 0

async def work(kind, word, value, seconds, fail, times):
    active[kind] += 1
    active["all"] += 1
    for key in (kind, "all"):
        most[key] = max(most[key], active[key])
    others = active["all"] - 1
    try:
        note(f"{word} begin")
        if seconds:
            await anyio.sleep(seconds)
        if fail and (not times or failures(word) < times):
            note(f"{word} failed")
            raise BY_CODE[fail](f"{word} was to fail")
        note(f"{word} done")
        return {"value": value, "others": others}
    finally:
        active[kind] -= 1
        active["all"] -= 1

@handles("toy.meet")
async def meet(ctx, word, count):
    # returns once so many are there at the same time
    active["meet"] += 1
    gathered = gather.setdefault(count, anyio.Event())
    if active["meet"] == count:
        gathered.set()
        active["meet"] = 0
        del gather[count]
    await gathered.wait()
    note(f"{word} done")
    return {"value": word, "others": count - 1}
""" + "".join(
    f'''
@handles("toy.{name}")
async def {name}(ctx, word, value=None, seconds=0, fail="", times=0):
    return await work("{name}", word, value, seconds, fail, times)
'''
    for name in ("look", "once", "again", "ask", "long", "brief", "burn")
)


def lines(folder: Path) -> list[str]:
    """What the toys have written, in order."""
    path = folder / "log"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def done(folder: Path) -> list[str]:
    """The words of the calls that were done, in order."""
    return [line.removesuffix(" done") for line in lines(folder) if line.endswith(" done")]


def step(id: str, type: str = "toy.once", /, *needs: str, **more: Any) -> dict[str, Any]:
    """A step that says its own name, after those that it needs. Keys of the toy's input go there, others into the step."""
    inside = {key: more.pop(key) for key in ("value", "seconds", "fail", "times", "word") if key in more}
    return {"id": id, "type": type, "depends_on": list(needs), "input": {"word": id, "value": id, **inside}, **more}


def pipeline(*steps: Mapping[str, Any], name: str = "toys", **more: Any) -> dict[str, Any]:
    """A document."""
    return {"name": name, "steps": list(steps), **more}
