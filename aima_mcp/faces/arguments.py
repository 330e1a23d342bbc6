"""Command-line options from an input schema, and back: arguments as a command line.

The gateway is the one judge of values. So nothing is refused here that it could refuse: a word that is no number stays a word, and
every face answers it with the same invalid_argument.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from aima_lib.errors import InvalidArgument
from aima_mcp.faces.complete import ids_for

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
DOTTED = re.compile(r"--([a-z][a-z0-9_-]*)\.([A-Za-z0-9_.-]+)(?:=(.*))?", re.DOTALL)
FIRST, BASE = "cli_first", "cli_input"


class Word(click.ParamType):
    """A value as its schema would have it where the text allows, else the text."""

    def __init__(self, key: str, spec: Mapping[str, Any]) -> None:
        self.key, self.spec, self.kind = key, spec, kind_of(spec)
        self.name = "|".join(map(str, spec["enum"])) if "enum" in spec else {"object": "json", "array": "json"}.get(self.kind, self.kind)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return f"[{self.name}]" if "enum" in self.spec else {"string": "TEXT"}.get(self.name, self.name.upper())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        if not isinstance(value, str):
            return value
        if self.kind in ("object", "array"):
            return read_json(value, f"--{dashed(self.key)}")
        return number(value) if self.kind in ("integer", "number") else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        choices = self.spec.get("enum") or ids_for(self.key, ctx.find_root().params.get("home"))
        return [click.shell_completion.CompletionItem(str(choice)) for choice in choices if str(choice).startswith(incomplete)]


def kind_of(spec: Mapping[str, Any]) -> str:
    """The JSON type an option stands for. Of several, the one a command line can always write."""
    kinds = spec.get("type", "string")
    if isinstance(kinds, str):
        return kinds
    return "string" if "string" in kinds else next(kind for kind in kinds if kind != "null")


def dashed(key: str) -> str:
    """`max_tokens` as an option is called: max-tokens."""
    return key.replace("_", "-")


def number(text: str) -> Any:
    """The number `text` writes as JSON would, else `text`."""
    return json.loads(text) if NUMBER.fullmatch(text) else text


def options(schema: Mapping[str, Any]) -> Iterator[click.Parameter]:
    """A parameter for each property; the first required string may stand without its name."""
    if (first := positional(schema)) is not None:
        yield click.Argument([FIRST], required=False, metavar=first.upper(), type=Word(first, schema["properties"][first]))
    for key, spec in schema["properties"].items():
        yield _option(key, spec, key in schema.get("required", ()))


def positional(schema: Mapping[str, Any]) -> str | None:
    """The first required property that is a string."""
    required = schema.get("required", ())
    return next((key for key, spec in schema["properties"].items() if key in required and kind_of(spec) == "string"), None)


def gather(schema: Mapping[str, Any], params: Mapping[str, Any], dotted: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """The arguments that were given, and no others."""
    base = read_json(params[BASE], "--input") if params.get(BASE) is not None else {}
    if not isinstance(base, dict):
        raise InvalidArgument("--input is not a JSON object", hint='write {"key": value}')
    given = {key: list(value) if isinstance(value, tuple) else value for key in schema["properties"] if (value := params.get(key)) not in (None, ())}
    first = positional(schema)
    if params.get(FIRST) is not None and first is not None:
        if first in given and given[first] != params[FIRST]:
            raise InvalidArgument(f"{first} was given twice: {params[FIRST]} and {given[first]}", hint=f"leave out --{dashed(first)}")
        given[first] = params[FIRST]
    arguments = base | given
    for key, path, text in dotted:
        _place(arguments, key, path.split("."), text)
    return arguments


def split_dotted(schema: Mapping[str, Any], words: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Take `--options.context_length 4096` out of a command line: only properties that are objects have parts."""
    objects = {key for key, spec in schema["properties"].items() if kind_of(spec) == "object"}
    rest, found, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*rest, word, *left], found
        match = DOTTED.fullmatch(word)
        if match is None or (key := match[1].replace("-", "_")) not in objects:
            rest.append(word)
            continue
        if match[3] is None and not left:
            raise InvalidArgument(f"{word} needs a value")
        found.append((key, match[2], match[3] if match[3] is not None else left.pop(0)))
    return rest, found


def read_json(text: str, what: str) -> Any:
    """JSON from a text, from @file, or from @- (standard input). A key that stands twice is refused: one of the two was meant."""
    if text.startswith("@"):
        text = _read(text[1:], what)
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_not_json)
    except ValueError as error:
        raise InvalidArgument(f"{what} is not JSON: {error}", hint="quote it for the shell, or give @file or @- for standard input") from error


def command_line(name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any] | None) -> str:
    """The call as one would type it."""
    first = positional(schema) if schema else None
    words = ["aima", *name.split(".", 1)]
    if first in arguments and not str(arguments[first]).startswith("-"):
        words.append(str(arguments[first]))
    else:
        first = None
    for key, value in arguments.items():
        if key != first:
            words += _words(key, value)
    return shlex.join(words)


def _words(key: str, value: Any) -> list[str]:
    option = f"--{dashed(key)}"
    if isinstance(value, bool):
        return [option if value else f"--no-{dashed(key)}"]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return [word for item in value for word in (option, item)]
    return [option, value if isinstance(value, str) else json.dumps(value)]


def _option(key: str, spec: Mapping[str, Any], required: bool) -> click.Option:
    kind, name = kind_of(spec), dashed(key)
    facts = ["required"] if required else [f"default: {json.dumps(spec['default'])}"] if "default" in spec else []
    described = spec.get("description", "") + "".join(f"  [{fact}]" for fact in facts)
    if kind == "boolean":
        return click.Option([f"--{name}/--no-{name}", key], default=None, help=described)
    items = spec.get("items", {})
    if kind == "array" and kind_of(items) not in ("object", "array"):
        return click.Option([f"--{name}", key], multiple=True, type=Word(key, items), help=f"{described}  [repeatable]")
    return click.Option([f"--{name}", key], type=Word(key, spec), help=described)


def _place(arguments: dict[str, Any], key: str, path: Sequence[str], text: str) -> None:
    """Set one part of an object argument. Its value is JSON where it reads as JSON, else the text."""
    inside = arguments
    for step in (key, *path[:-1]):
        held = inside.get(step) or {}
        if not isinstance(held, dict):
            raise InvalidArgument(f"--{dashed(key)}.{'.'.join(path)}: {step} is no object", hint="give it whole, or in parts only")
        inside[step] = dict(held)
        inside = inside[step]
    try:
        inside[path[-1]] = json.loads(text, parse_constant=_not_json)
    except ValueError:
        inside[path[-1]] = text


def _read(path: str, what: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{what}: cannot read {path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
