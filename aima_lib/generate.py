"""Write `aima_lib/types.py`, `aima_lib/client.pyi` and the README's table of units from `schemas/`. `--check` fails on drift instead.

The stub gives editors and type checkers what `aima_lib/client.py` builds from the same files when it runs.
"""

from __future__ import annotations

import json
import keyword
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aima_lib.registry import SCHEMAS, Unit, definitions, inline

HERE = Path(__file__).parent
BEGIN, END = "<!-- units: written by python -m aima_lib.generate -->", "<!-- end of units -->"
HEADER = '"""Generated from schemas/ by python -m aima_lib.generate. Do not edit."""\n\n'
SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None", "object": "dict[str, Any]"}


def annotation(spec: Mapping[str, Any], nouns: Mapping[str, str]) -> str:
    """The Python type of a schema: a noun's TypedDict where it is one, builtins elsewhere."""
    if (title := nouns.get(json.dumps(_shape(spec), sort_keys=True))) is not None:
        return title
    if "enum" in spec:
        return f"Literal[{', '.join(map(repr, spec['enum']))}]"
    kinds = spec.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return " | ".join(_array(spec, nouns) if kind == "array" else SCALARS[kind] for kind in kinds) or "Any"


def types_module(units: list[Unit], nouns: Mapping[str, str]) -> str:
    """`types.py`: a TypedDict for every shared noun and every output."""
    classes = [_typed_dict(noun["title"], noun, nouns) for noun in _nouns()]
    classes += [_typed_dict(_result(unit), unit.definition["outputSchema"], nouns) for unit in units]
    imports = "from __future__ import annotations\n\nfrom typing import Any, Literal, NotRequired, TypedDict\n"
    return HEADER + imports + "".join(f"\n\n{text}\n" for text in classes)


def client_stub(units: list[Unit], nouns: Mapping[str, str]) -> str:
    """`client.pyi`: every unit as a method of both clients."""
    parts = [HEADER + STUB_HEAD]
    domains = sorted({unit.domain for unit in units})
    for prefix in ("Async", ""):
        for domain in domains:
            methods = [_method(unit, nouns, prefix) for unit in units if unit.domain == domain]
            parts.append(f"class _{prefix}{domain.title()}:\n" + "\n".join(methods) + "\n")
        attributes = "".join(f"    {domain}: _{prefix}{domain.title()}\n" for domain in domains)
        parts.append(f"class {prefix}Aima:\n{attributes}" + (ASYNC_MEMBERS if prefix else MEMBERS))
    return "\n".join(parts)


def build() -> dict[Path, str]:
    """Each generated file and what it should hold."""
    units = [unit for unit in map(Unit, definitions()) if unit.kind in ("command", "query")]
    nouns = {json.dumps(_shape(noun), sort_keys=True): noun["title"] for noun in _nouns()}
    built = {HERE / "types.py": types_module(units, nouns), HERE / "client.pyi": client_stub(units, nouns)}
    readme = HERE.parent / "README.md"
    if readme.exists():  # in a checkout; an installed package has none
        before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
        built[readme] = f"{before}{BEGIN}\n{units_table()}{END}{rest.partition(END)[2]}"
    return built


def units_table() -> str:
    """The README's table: every unit, resource and event by domain, from the files."""
    rows: dict[str, dict[str, list[str]]] = {}
    for unit in map(Unit, definitions()):
        shown = f"`{unit.definition['uriTemplate']}`" if unit.kind == "resource" else f"`{unit.action}`"
        shown += " (run)" if unit.durable else ""
        rows.setdefault(unit.domain, {}).setdefault(unit.kind, []).append(shown)
    lines = ["| domain | commands | queries | resources | prompts | events |", "|---|---|---|---|---|---|"]
    for domain, kinds in rows.items():
        cells = [" ".join(kinds.get(kind, [])) for kind in ("command", "query", "resource", "prompt", "event")]
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _nouns() -> Iterator[dict[str, Any]]:
    for path in sorted((SCHEMAS / "types").glob("*.json")):
        noun = inline(json.loads(path.read_text(encoding="utf-8")), path)
        if "properties" in noun:
            yield noun | {"title": "".join(word[0].upper() + word[1:] for word in noun["title"].split())}


def _shape(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what a reference may overrule, and without the title we spell in our own way."""
    return {key: value for key, value in spec.items() if key not in ("description", "title")}


def _array(spec: Mapping[str, Any], nouns: Mapping[str, str]) -> str:
    return f"list[{annotation(spec.get('items', {}), nouns)}]"


def _typed_dict(name: str, spec: Mapping[str, Any], nouns: Mapping[str, str]) -> str:
    head = f"class {name}(TypedDict):\n" + f'    """{spec.get("description", name)}"""\n'
    lines = []
    for key, value in spec["properties"].items():
        inner = {noun: title for noun, title in nouns.items() if title != name}
        kind = annotation(value, inner)
        lines.append(f"    {key}: {kind if key in spec.get('required', []) else f'NotRequired[{kind}]'}")
    return head + ("\n" + "\n".join(lines) if lines else "")


def _method(unit: Unit, nouns: Mapping[str, str], prefix: str) -> str:
    schema = unit.definition["inputSchema"]
    required = schema.get("required", [])
    parameters = []
    for key, spec in sorted(schema["properties"].items(), key=lambda item: item[0] not in required):
        kind = annotation(spec, nouns).replace("list[", "builtins.list[")  # a domain has a method called `list`
        if key in required:
            parameters.append(f"{key}: {kind}")
        elif "default" in spec:
            parameters.append(f"{key}: {kind} = {spec['default']!r}")
        else:
            parameters.append(f"{key}: {kind} | None = None")
    parameters += ["idempotency_key: str | None = None"] if unit.durable else []
    parameters += ["token: str | None = None"] if unit.kind == "command" and "token" not in schema["properties"] else []
    given = ", ".join(["self", "*", *parameters]) if parameters else "self"
    name = f"{unit.action}_" if keyword.iskeyword(unit.action) else unit.action
    return f"    {'async ' if prefix else ''}def {name}({given}) -> {_result(unit)}: ..."


def _result(unit: Unit) -> str:
    return "".join(word.title() for word in unit.name.replace(".", "_").split("_")) + "Result"


STUB_HEAD = """import builtins
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from aima_lib.door import Door
from aima_lib.flows.builder import Flow
from aima_lib.types import *

class AsyncStream:
    result: Mapping[str, Any] | None
    def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]: ...

class Stream:
    result: Mapping[str, Any] | None
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...
"""
ASYNC_MEMBERS = """    @staticmethod
    def flow(name: str, *, description: str = "", input: Mapping[str, Any] | None = None, **config: Any) -> Flow: ...
    @property
    def door(self) -> Door: ...
    def __init__(self, home: str | Path | None = None, *, url: str | None = None, key: str | None = None) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]: ...
    async def start(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]: ...
    def stream(self, name: str, /, **arguments: Any) -> AsyncStream: ...
    def follow(self, run_id: str) -> AsyncStream: ...
    async def sql(self) -> sqlite3.Connection: ...
    async def plan(self, name: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]: ...
    async def apply(self, plan: Mapping[str, Any]) -> Mapping[str, Any]: ...
    async def read(self, uri: str) -> Mapping[str, Any]: ...
    def events(self, after: int | None = None, types: tuple[str, ...] = ()) -> AsyncIterator[Mapping[str, Any]]: ...
"""
MEMBERS = """    @staticmethod
    def flow(name: str, *, description: str = "", input: Mapping[str, Any] | None = None, **config: Any) -> Flow: ...
    def __init__(self, home: str | Path | None = None, *, url: str | None = None, key: str | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *reason: object) -> None: ...
    def close(self) -> None: ...
    def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]: ...
    def start(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]: ...
    def stream(self, name: str, /, **arguments: Any) -> Stream: ...
    def follow(self, run_id: str) -> Stream: ...
    def events(self, after: int | None = None, types: tuple[str, ...] = ()) -> Iterator[Mapping[str, Any]]: ...
    def sql(self) -> sqlite3.Connection: ...
    def plan(self, name: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]: ...
    def apply(self, plan: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def read(self, uri: str) -> Mapping[str, Any]: ...
"""


def main() -> int:
    """Write what is stale, or with --check name it and fail."""
    stale = {path: text for path, text in build().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv:
        if stale:
            print(f"stale: {', '.join(path.name for path in stale)}; run python -m aima_lib.generate", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
