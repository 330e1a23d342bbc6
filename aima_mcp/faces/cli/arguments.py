"""Command-line options from an input schema, and back: arguments as a command line.

The gateway is the one judge of values. So nothing is refused here that it could refuse: a word that is no number stays a word, and
every face answers it with the same invalid_argument.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from aima_lib.errors import InvalidArgument
from aima_lib.redact import is_secret, secrets_in
from aima_mcp.faces import strict_json
from aima_mcp.faces.cli import files, secret
from aima_mcp.faces.cli.complete import offered, values_for

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
DOTTED = re.compile(r"--([a-z][a-z0-9_-]*)\.([A-Za-z0-9_.-]+)(?:=(.*))?", re.DOTALL)
FIRST, BASE = "cli_first", "cli_input"


class Word(click.ParamType[Any]):
    """A value as its schema would have it where the text allows, else the text."""

    def __init__(self, key: str, spec: Mapping[str, Any]) -> None:
        self.key, self.spec, self.kind = key, spec, kind_of(spec)
        self.name = "|".join(map(str, spec["enum"])) if "enum" in spec else {"object": "json", "array": "json"}.get(self.kind, self.kind)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return f"[{self.name}]" if "enum" in self.spec else {"string": "TEXT"}.get(self.name, self.name.upper())

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        if not isinstance(value, str):
            return value
        if value.startswith("@") and files.is_file(self.spec):
            return files.attached(value, f"--{dashed(self.key)}")
        if self.kind in ("object", "array"):
            return read_json(value, f"--{dashed(self.key)}")
        if self.kind in ("integer", "number"):
            return number(value)
        if value.startswith("@") and "contentMediaType" in self.spec and "contentEncoding" not in self.spec:
            return from_file(value, f"--{dashed(self.key)}")
        return _object_or_text(value) if "object" in kinds_of(self.spec) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        domain = ctx.parent.info_name or "" if ctx.parent else ""
        return offered(self.spec.get("enum") or values_for(self.key, domain, ctx.find_root().params.get("home")), incomplete)


def kinds_of(spec: Mapping[str, Any]) -> list[str]:
    """The JSON types a value may have, without null."""
    kinds = spec.get("type", "string")
    return [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]


def kind_of(spec: Mapping[str, Any]) -> str:
    """The JSON type an option stands for. Of several, the one a command line can always write."""
    kinds = kinds_of(spec)
    return "string" if "string" in kinds else kinds[0]


def _is_repeatable(spec: Mapping[str, Any]) -> bool:
    return "array" in kinds_of(spec) and kind_of(spec.get("items", {})) not in ("object", "array")


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
        if is_secret(spec):
            yield from secret.options(key, spec)
        else:
            yield _option(key, spec, key in schema.get("required", ()))
            yield from _parts(key, spec)


def positional(schema: Mapping[str, Any]) -> str | None:
    """The first required property that is a string, and no secret."""
    required = schema.get("required", ())
    fit = (key for key, spec in schema["properties"].items() if key in required and kind_of(spec) == "string" and not is_secret(spec))
    return next(fit, None)


def gather(schema: Mapping[str, Any], params: Mapping[str, Any], dotted: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """The arguments that were given, and no others."""
    secrets = secrets_in(schema)
    base = _base(params[BASE], secrets) if params.get(BASE) is not None else {}
    named = {key: params.get(key) for key in schema["properties"] if key not in secrets}
    given = {key: _listed(schema["properties"][key], value) for key, value in named.items() if value not in (None, ())}
    first = positional(schema)
    if params.get(FIRST) is not None and first is not None:
        if first in given and given[first] != params[FIRST]:
            raise InvalidArgument(f"{first} was given twice: {params[FIRST]} and {given[first]}", hint=f"leave out --{dashed(first)}")
        given[first] = params[FIRST]
    if isinstance(given.get("path"), str) and Path(given["path"]).exists():
        given["path"] = str(Path(given["path"]).absolute())  # the host works in another folder than whoever types
    arguments = base | given
    for key, path, text in dotted:
        _place(arguments, key, path.split("."), text)
    required = schema.get("required", ())
    return arguments | secret.gather({key: key in required and key not in arguments for key in secrets}, params)


def _base(text: str, secrets: Sequence[str]) -> dict[str, Any]:
    base = read_json(text, "--input")
    if not isinstance(base, dict):
        raise InvalidArgument("--input is not a JSON object", hint='write {"key": value}')
    if not text.startswith("@") and (open_ := next((key for key in secrets if key in base), None)):
        raise secret.told(open_)
    return base


def split_dotted(schema: Mapping[str, Any], words: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Take `--options.context_length 4096` out of a command line: only properties that are objects have parts."""
    objects = {key for key, spec in schema["properties"].items() if kind_of(spec) == "object"}
    rest: list[str] = []
    found: list[tuple[str, str, str]] = []
    left = list(words)
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
        found.append((key, _spelled(match[2], schema["properties"][key]), match[3] if match[3] is not None else left.pop(0)))
    return rest, found


def _spelled(path: str, spec: Mapping[str, Any]) -> str:
    """The path as the schema spells it: options are written with dashes, members with underscores."""
    steps = []
    for step in path.split("."):
        inside = spec.get("properties", {})
        steps.append(step if step in inside or step.replace("-", "_") not in inside else step.replace("-", "_"))
        spec = inside.get(steps[-1], {})
    return ".".join(steps)


def read_json(text: str, what: str) -> Any:
    """JSON from a text, from @file, or from @- (standard input), as strictly as over HTTP."""
    body = _read(text[1:], what) if text.startswith("@") else text.encode("utf-8", "surrogateescape")
    try:
        return strict_json.read(body)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error}", hint="quote it for the shell, or give @file or @-") from error


def command_line(name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any] | None) -> str:
    """The call as one would type it."""
    first = positional(schema) if schema else None
    words = ["aima", *name.split(".", 1)]
    if first is not None and first in arguments and not str(arguments[first]).startswith("-"):
        words.append(str(arguments[first]))
    else:
        first = None
    secrets = secrets_in(schema) if schema else ()
    for key, value in arguments.items():
        if key in secrets:
            words.append(f"--{dashed(key)}-stdin")
        elif key != first:
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
    facts += ["@FILE reads one, @- standard input"] if files.is_file(spec) else []
    described = spec.get("description", "") + "".join(f"  [{fact}]" for fact in facts)
    if kind == "boolean":
        return click.Option([f"--{name}/--no-{name}", key], default=None, help=described)
    if _is_repeatable(spec):
        return click.Option([f"--{name}", key], multiple=True, type=Word(key, spec.get("items", {})), help=f"{described}  [repeatable]")
    return click.Option([f"--{name}", key], type=Word(key, spec), help=described)


def _parts(key: str, spec: Mapping[str, Any]) -> Iterator[click.Option]:
    """The known members of an object, each an option. For the help and for Tab: `split_dotted` takes them before they are parsed."""
    for part, inner in spec.get("properties", {}).items() if kind_of(spec) == "object" else ():
        names = [f"--{dashed(key)}.{dashed(part)}", f"{key}__{part}"]
        yield click.Option(names, expose_value=False, type=Word(part, inner), help=inner.get("description", ""))


def _listed(spec: Mapping[str, Any], value: Any) -> Any:
    """What was repeated, as a list; once is a text where the schema takes a text as well."""
    if not isinstance(value, tuple):
        return value
    if len(value) == 1 and isinstance(value[0], str) and kind_of(spec.get("items", {})) != "string" and value[0].lstrip().startswith("["):
        return read_json(value[0], "a list")
    return value[0] if len(value) == 1 and kind_of(spec) != "array" else list(value)


def _object_or_text(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError:
        return text


def _place(arguments: dict[str, Any], key: str, path: Sequence[str], text: str) -> None:
    """Set one part of an object argument. Its value is a file's where it says @file, JSON where it reads as JSON, else the text."""
    inside = arguments
    for step in (key, *path[:-1]):
        held = inside.get(step) or {}
        if not isinstance(held, dict):
            raise InvalidArgument(f"--{dashed(key)}.{'.'.join(path)}: {step} is no object", hint="give it whole, or in parts only")
        inside[step] = dict(held)
        inside = inside[step]
    if text.startswith("@"):
        inside[path[-1]] = from_file(text, f"--{dashed(key)}.{'.'.join(path)}")
        return
    try:
        inside[path[-1]] = strict_json.read(text.encode("utf-8", "surrogateescape"))
    except InvalidArgument:
        inside[path[-1]] = text


def from_file(text: str, what: str) -> str:
    """What is in the file that `@path` names: its text, or base64 where it is none; `@@x` is the text `@x` itself."""
    if text.startswith("@@"):
        return text[1:]
    body = _read(text[1:], what)
    try:
        if b"\0" not in body:
            return body.decode()
    except UnicodeDecodeError:
        pass
    return base64.b64encode(body).decode()


def _read(path: str, what: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{what}: cannot read {path}: {error.strerror}", hint="@- reads standard input") from error
