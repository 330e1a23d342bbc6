"""What goes over the wire for a tool: its definition, its result, its error, and the progress before them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from aima_lib.errors import AimaError, ResourceExhausted
from aima_lib.registry import Marks, Unit
from aima_mcp.faces.mcp.fit import Fitted, fit, shorter, size
from aima_mcp.faces.mcp.icons import icons
from aima_mcp.faces.mcp.outside import capped, clean, clean_text, fenced, is_outside, present

MOST_BYTES = 65_536 - 1_024  # of a whole result, text and structuredContent together; 2026-07-28 adds who the server is, icon and all
BUDGETS = (28_000, 20_000, 12_000)  # of the output, which a result holds twice; escaping may make the text longer
ERROR_TEXT = 4_000  # characters of a text in an error
LINE_TEXT = 500  # of a line of progress
ERROR_MARKS: Marks = {"message": ERROR_TEXT, "details": ERROR_TEXT}
TICK = 0.001  # what says "still at it" when a stage has no number
TOOL_KEYS = ("title", "description", "inputSchema", "outputSchema", "annotations")
RUN_KEYS = ("id", "unit", "status", "progress")
COMPLETE = {"resultType": "complete"}  # 2026-07-28 demands it of every result; the SDK takes it out again for older clients
RUN = {
    "type": "object",
    "description": "Only when the call has not ended within 45 s: the run that goes on. Follow it with run_wait, end it with run_cancel.",
    "required": ["id", "unit", "status"],
    "properties": {
        "id": {"type": "string", "description": "Id of the run: the run_id of run_wait, run_get and run_cancel."},
        "unit": {"type": "string", "description": "The unit that was called."},
        "status": {"type": "string", "description": "running, as long as it goes on."},
        "progress": {"type": ["object", "null"], "description": "The newest progress: phase, message, completed, total."},
    },
}
Report = Callable[[float, float | None, str | None], Awaitable[None]]


def wire_name(name: str) -> str:
    """`model.pull` is `model_pull` on the wire: hosts refuse dots in tool names."""
    return name.replace(".", "_")


def tool(unit: Unit, whole: bool = True) -> dict[str, Any]:
    """The unit's MCP tool: its own file, less what only AIMA reads. A durable one may also answer with its run.

    whole: with its outputSchema and icon, and with what is described elsewhere. An outputSchema is whole or left out: a shortened one
        would no longer say the truth.
    """
    definition = {key: unit.definition[key] for key in TOOL_KEYS if whole or key != "outputSchema"}
    if not whole:
        definition["inputSchema"] = unit.listed
    else:
        definition["icons"] = icons(unit.domain)
    if unit.durable and whole:
        schema = {key: value for key, value in unit.definition["outputSchema"].items() if key != "required"}
        definition["outputSchema"] = schema | {"properties": schema["properties"] | {"run": RUN}}
    return {"name": wire_name(unit.name), **definition}


def success(
    unit: Unit,
    output: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    listed: Collection[str] | None = None,
    called: Unit | None = None,
) -> dict[str, Any]:
    """The output, whole for a program, and as text with the field that matters first.

    What does not fit is cut and the text says how to go on. `arguments` are the call's, `listed` as for `unfinished`; `called` is the
    unit whose output this one passes on as its result.
    """
    marks: Marks | None = {"result": called.untrusted} if called and called.untrusted is not None else unit.untrusted
    output = capped(marks, clean(output))
    whole = _result(_spread(unit, output, marks), output)
    if size(whole) <= MOST_BYTES:
        return whole
    for budget in BUDGETS:
        fitted = _fitted(unit, output, arguments or {}, called, budget)
        if fitted is None:
            continue
        note = f"\n… {fitted.note}"
        if fitted.unit is not None:
            note += f"\nnext: {spelled(fitted.unit, fitted.arguments or {}, listed)}"
        result = _result(_spread(unit, fitted.output, marks) + note, fitted.output)
        if size(result) <= MOST_BYTES:
            return result
    message = f"{unit.name} was done, but its result has {size(output)} bytes and cannot be cut; over MCP a result has at most {MOST_BYTES}"
    return failure(ResourceExhausted(message, hint=f"ask for less at a time, or POST /units/{unit.name.replace('.', '/')}"), listed)


def _fitted(unit: Unit, output: Mapping[str, Any], arguments: Mapping[str, Any], called: Unit | None, budget: int) -> Fitted | None:
    inner = output.get("result")
    if called is None or not isinstance(inner, Mapping):
        return fit(unit, output, arguments, budget)
    found = fit(called, inner, arguments.get("arguments") or {}, budget)
    return None if found is None else replace(found, output={**output, "result": found.output})


def _spread(unit: Unit, output: Mapping[str, Any], marks: Marks | None) -> str:
    """The main field, then the rest; what is all from outside is fenced, of the others those fields are named that hold some."""
    primary = unit.definition.get("primary")
    said = [value if isinstance(value, str) else compact(value) for key, value in output.items() if key == primary]
    rest = {key: value for key, value in output.items() if key != primary}
    if said and is_outside(marks, str(primary)):
        said = [fenced(text) for text in said if text]
        names = dict.fromkeys(present(marks, rest))
    else:
        names = dict.fromkeys(present(marks, output))
    if rest or not said:
        said.append(compact(rest))
    return "\n".join([*said, *([f"untrusted fields: {', '.join(names)}"] if names else [])])


def unfinished(unit: Unit, run: Mapping[str, Any], listed: Collection[str] | None = None) -> dict[str, Any]:
    """The run of a call that goes on without its caller. `listed` are the units whose tools that one sees; None is all."""
    progress = clean(run.get("progress") or {})
    so_far = f" ({progress['phase']}: {progress['message']})" if progress else ""
    text = (
        f"{unit.definition['title']}: still running{so_far}. It goes on by itself as run {run['id']}.\n"
        f"next: {spelled('run.wait', {'run_id': run['id']}, listed)} until its status is no longer running; run_cancel ends it."
    )
    return _result(text, {"run": {key: run.get(key) for key in RUN_KEYS}})


def failure(error: AimaError, listed: Collection[str] | None = None) -> dict[str, Any]:
    """The error, whole for a program, and as lines that a model can act on. `listed` as for `unfinished`."""
    said = capped(ERROR_MARKS, clean(error.as_dict()))
    if size(said) > MOST_BYTES // 4:
        said = shorter(said, ERROR_TEXT) | {"details": {}}
    message, quoted = str(said["message"]), said.get("details", {}).get("said")
    if isinstance(quoted, str) and quoted:
        message = message.replace(quoted, fenced(quoted)) if quoted in message else fenced(message)
    lines = [f"{error.code}: {message}"]
    if error.hint:
        lines.append(f"hint: {said['hint']}")
    lines += [f"next: {spelled(call['unit'], call['arguments'], listed)}" for call in said.get("next", [])]
    return _result("\n".join(lines), said) | {"isError": True}


def spelled(name: str, arguments: Mapping[str, Any], listed: Collection[str] | None) -> str:
    """How to call a unit: by its tool, or through unit_call when the list that the caller sees lacks it."""
    if listed is None or name in listed:
        return f"call {wire_name(name)} with {compact(arguments)}"
    return f"call unit_call with {compact({'name': name, 'arguments': arguments})}"


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def line(text: str) -> str:
    """A message of a run's progress: one may hold the names of files and repositories."""
    return str(shorter(clean_text(text), LINE_TEXT))


class Progress:
    """Stream items as MCP progress, which must only ever grow: phases are laid end to end, tokens counted."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._phase: str | None = None
        self._base, self._last = 0, 0.0

    async def __call__(self, item: Mapping[str, Any]) -> None:
        """Pass one item on."""
        if "phase" not in item:
            self._last += 1
            await self._report(self._last, None, _words(item))
            return
        if item["phase"] != self._phase:
            self._phase, self._base = item["phase"], int(self._last)
        reached = self._base + float(item.get("completed") or 0)
        self._last = reached if reached > self._last else self._last + TICK
        total = item.get("total")
        await self._report(self._last, None if total is None else self._base + float(total), line(item["message"]))


def _words(item: Any) -> str:
    """The text that a stream item wraps, a token or a line: {"delta": {"content": "Paris"}}. Without one, the item as it is."""
    inner = item
    while isinstance(inner, Mapping):
        given = [value for value in inner.values() if value is not None]
        if len(given) != 1:
            break
        inner = given[0]
    return clean_text(inner) if isinstance(inner, str) else compact(clean(item))


def _result(text: str, structured: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text.encode("utf-8")
        compact(structured).encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8: half a surrogate would end the whole session
        text = text.encode("utf-8", "replace").decode("utf-8")
        structured = json.loads(compact(structured).encode("utf-8", "replace"))
    return {**COMPLETE, "content": [{"type": "text", "text": text}], "structuredContent": dict(structured), "isError": False}
