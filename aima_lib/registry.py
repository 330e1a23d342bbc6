"""What exists: unit files read from `schemas/`, each bound to its handler."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from aima_lib.redact import HIDDEN, is_secret, keeps_private, known_key

Handler = Callable[..., Awaitable[Mapping[str, Any]]]
Planner = Callable[[Any, Mapping[str, Any]], Awaitable[Any]]
PACKAGE = Path(__file__).parent
# A wheel ships the schemas inside the package; a checkout keeps them at the top, where people look for them.
SCHEMAS = PACKAGE / "schemas" if (PACKAGE / "schemas").is_dir() else PACKAGE.parent / "schemas"


LONGEST_MESSAGE = 500  # of which the value takes the beginning, and the end says what is wrong with it
LOGIN = re.compile(r"://[^/?#\s]*@")
UNHANDLED = ("event", "prompt")  # kinds that are no more than their file


class SchemaError(TypeError):
    """A unit file and the code disagree: AIMA refuses to start."""


def handles(name: str, *, unwinds: bool = False) -> Callable[[Handler], Handler]:
    """Mark a coroutine function as the handler of the unit or resource called `name`.

    unwinds: of a run that was cancelled, it is called once more and undoes what it has done; `runs.is_cancelled` tells it.
    """

    def mark(function: Handler) -> Handler:
        function.__unit__ = name  # type: ignore[attr-defined]
        function.__unwinds__ = unwinds  # type: ignore[attr-defined]
        return function

    return mark


def plans(*names: str) -> Callable[[Planner], Planner]:
    """Mark a coroutine function as what says, of a call's arguments, what these commands would change. Every command has one."""

    def mark(function: Planner) -> Planner:
        function.__plans__ = names  # type: ignore[attr-defined]
        return function

    return mark


def first_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with `value`, with its path, or None."""
    return Judge(schema).first_error(value)


def whole(value: Any) -> Any:
    """The value with whole numbers as integers wherever they stand: to JSON Schema 2.0 is an integer, to a handler it is not."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


class Judge:
    """One schema, compiled. The validator is imported late: listing units needs none.

    private: no error repeats a value. So it is wherever the schema marks one as `writeOnly`.
    """

    def __init__(self, schema: Mapping[str, Any], *, private: bool = False) -> None:
        import jsonschema_rs

        self._private = private or keeps_private(schema)
        self._validator = jsonschema_rs.Draft202012Validator(dict(schema), mask=HIDDEN if self._private else None)

    def first_error(self, value: Any) -> str | None:
        """What is wrong with `value`, with its path, or None. Numbers JSON cannot carry are wrong too."""
        try:
            if self._validator.is_valid(value):
                return None
            error = self._first(value)
        except (ValueError, TypeError) as unfit:
            return "not a JSON value" if self._private else f"not a JSON value: {unfit}"
        if error is None:
            return None
        where = ".".join(str(step) for step in error.instance_path)
        message = self._message(error)
        return f"{where}: {message}" if where else message

    def unfit(self, value: Any) -> tuple[str, str] | None:
        """The path of the first field that is wrong, one that nobody knows included, and what is wrong with it; or None."""
        try:
            error = self._first(value)
        except (ValueError, TypeError):
            return "", "not a JSON value"
        if error is None:
            return None
        steps = [str(step) for step in error.instance_path]
        if unexpected := getattr(error.kind, "unexpected", None):
            return ".".join([*steps, known_key(unexpected[0])]), "there is no such field"
        return ".".join(steps), self._message(error)

    def _first(self, value: Any) -> Any:
        return None if self._validator.is_valid(value) else next(iter(self._validator.iter_errors(value)))

    def _message(self, error: Any) -> str:
        said = LOGIN.sub("://***@", self._told(error) if self._private else str(error.message))
        return said if len(said) <= LONGEST_MESSAGE else f"{said[: LONGEST_MESSAGE // 2]} … {said[-LONGEST_MESSAGE // 2 :]}"

    @staticmethod
    def _told(error: Any) -> str:
        """The message. Values are masked in it by the validator, keys that nobody knows by us."""
        unexpected = getattr(error.kind, "unexpected", None)
        if unexpected is None:
            return str(error.message)
        return f"Additional properties are not allowed ({', '.join(repr(known_key(key)) for key in unexpected)})"


# Field → its marks, `[]` for a list's items; at the end, how many characters of such a text are shown.
Marks = int | dict[str, "Marks"]


@dataclass(frozen=True)
class Unit:
    """One unit file, with its references inlined, its handler (None for events, prompts and attached clients), and a command's planner."""

    definition: Mapping[str, Any]
    handler: Handler | None = None
    planner: Planner | None = None

    @property
    def name(self) -> str:
        return str(self.definition["name"])

    @property
    def domain(self) -> str:
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        return self.name.partition(".")[2]

    @property
    def kind(self) -> str:
        return str(self.definition["kind"])

    @property
    def durable(self) -> bool:
        return bool(self.definition.get("durable"))

    @property
    def unwinds(self) -> bool:
        """Whether a cancelled run of it still has something to undo."""
        return bool(getattr(self.handler, "__unwinds__", False))

    @property
    def policy(self) -> str:
        """The least that a call of it asks for: auto, plan or approve. What destroys something asks for a plan."""
        destroys = self.definition.get("annotations", {}).get("destructiveHint", False)
        return str(self.definition.get("policy", "plan" if destroys else "auto"))

    @cached_property
    def input(self) -> Judge:
        return Judge(self.definition["inputSchema"])

    @cached_property
    def listed(self) -> Mapping[str, Any]:
        """The inputSchema as a short list shows it: what is described elsewhere is open there."""
        schema = self.definition["inputSchema"]
        opened = {key: {"type": "object", "description": schema["properties"][key]["description"]} for key in self.elsewhere}
        return {**schema, "properties": {**schema["properties"], **opened}} if opened else schema

    @property
    def elsewhere(self) -> Mapping[str, Any]:
        """Objects of the input whose properties another unit describes, and the call."""
        found: Mapping[str, Any] = self.definition.get("elsewhere", {})
        return found

    @cached_property
    def output(self) -> Judge:
        return Judge(self.definition["outputSchema"], private=True)  # what does not fit may be a key, or what a model said

    @cached_property
    def untrusted(self) -> Marks | None:
        """Which fields of the output hold text that others wrote."""
        return _marks(self.definition["outputSchema"])

    @property
    def holds_file(self) -> bool:
        """Whether it is a resource whose content is a file: {media_type, content}, the bytes as base64."""
        content = self.definition["outputSchema"]["properties"].get("content", {})
        return self.kind == "resource" and content.get("contentEncoding") == "base64"

    @cached_property
    def payload(self) -> Judge:
        return Judge(self.definition["payloadSchema"])

    @cached_property
    def stream(self) -> Judge | None:
        schema = _noun("progress") if self.durable else self.definition.get("streamSchema")
        return Judge(schema) if schema else None

    @cached_property
    def uri_pattern(self) -> re.Pattern[str]:
        """What a resource's URIs look like, one named group a variable."""
        parts = re.split(r"\{([a-z_]+)\}", self.definition["uriTemplate"])
        return re.compile("".join(f"(?P<{part}>[^/?#]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)))


class Registry(Mapping[str, Unit]):
    """All units, by name. Nobody changes one: every host of a process shares it."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._units = MappingProxyType(dict(units))

    def __getitem__(self, name: str) -> Unit:
        return self._units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def of(self, *kinds: str) -> list[Unit]:
        """The units of these kinds, in the order of their names."""
        return [unit for unit in self.values() if unit.kind in kinds]

    def resource(self, uri: str) -> tuple[Unit, dict[str, str]] | None:
        """The resource that answers `uri`, and the template's variables, or None."""
        for unit in self.of("resource"):
            if found := unit.uri_pattern.fullmatch(uri):
                return unit, found.groupdict()
        return None

    @classmethod
    def described(cls, schemas: Path = SCHEMAS) -> Registry:
        """Every unit file, unbound: what a face that attaches to a host needs."""
        return cls({unit.name: unit for unit in map(Unit, definitions(schemas))})

    @classmethod
    def load(cls, handlers: ModuleType, schemas: Path = SCHEMAS) -> Registry:
        """Read every unit file and bind it.

        Raises:
            SchemaError: a file is misnamed or names what does not exist, a unit has no handler, a handler no unit, or the two disagree.
        """
        found, planners = _marked(handlers)
        units = {}
        for definition in definitions(schemas):
            name, handler = definition["name"], None
            _refuse_leaks(definition)
            if definition["kind"] not in UNHANDLED:
                if name not in found:
                    raise SchemaError(f"schemas/{name.replace('.', '/')}.json has no handler")
                handler = found.pop(name)
                _agree(definition, handler)
            if definition["kind"] == "command" and name not in planners:
                raise SchemaError(f"schemas/{name.replace('.', '/')}.json has no planner: nobody could say what it would change")
            units[name] = Unit(definition, handler, planners.pop(name, None))
        if found or planners:
            raise SchemaError(f"handlers without a schema file: {', '.join(sorted({*found, *planners}))}")
        _refuse_dangling(units)
        return cls(units)


def definitions(schemas: Path = SCHEMAS, domain: str = "*") -> Iterator[dict[str, Any]]:
    """Every unit file of a domain (or of all), references inlined, in the order of their names."""
    for path in sorted(schemas.glob(f"{domain}/*.json")):
        if path.parent.name == "types":
            continue
        definition: dict[str, Any] = inline(json.loads(path.read_text(encoding="utf-8")), path)
        if definition.get("name") != f"{path.parent.name}.{path.stem}":
            raise SchemaError(f"{path} is named {definition.get('name')!r}")
        if "template" in definition:
            definition["text"] = _template(path.parent / definition["template"])
        yield definition


def inline(node: Any, source: Path) -> Any:
    """Replace `{"$ref": "../types/x.json"}` by the file's content: an MCP client cannot follow our paths."""
    if isinstance(node, dict):
        reference = node.get("$ref", "")
        if isinstance(reference, str) and reference.startswith("../"):
            target = source.parent / reference
            try:
                noun = _inlined(target, target.stat().st_mtime_ns)
            except (OSError, ValueError) as error:
                raise SchemaError(f"{source} refers to {reference}, which cannot be read: {error}") from error
            return {**noun, **{key: inline(value, target) for key, value in node.items() if key != "$ref"}}
        return {key: inline(value, source) for key, value in node.items()}
    return [inline(item, source) for item in node] if isinstance(node, list) else node


@lru_cache(maxsize=1024)
def _inlined(path: Path, _changed: int) -> Any:
    """A noun, which most units refer to: read once."""
    return inline(json.loads(path.read_text(encoding="utf-8")), path)


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} cannot be read: {error}") from error


def _noun(name: str) -> dict[str, Any]:
    path = SCHEMAS / "types" / f"{name}.json"
    noun: dict[str, Any] = inline(json.loads(path.read_text(encoding="utf-8")), path)
    return noun


def _marked(package: ModuleType) -> tuple[dict[str, Handler], dict[str, Planner]]:
    """Every handler and every planner of a package, by unit."""
    handlers: dict[str, Handler] = {}
    planners: dict[str, Planner] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for function in vars(module).values():
            if getattr(function, "__module__", None) != module.__name__:
                continue
            if name := getattr(function, "__unit__", None):
                _add(handlers, name, function)
            for name in getattr(function, "__plans__", ()):
                _add(planners, name, function)
    return handlers, planners


def _add(found: dict[str, Any], name: str, function: Any) -> None:
    if name in found:
        raise SchemaError(f"{name} has two handlers or planners: {found[name].__module__} and {function.__module__}")
    found[name] = function


def _agree(definition: Mapping[str, Any], handler: Handler) -> None:
    """Refuse a handler whose keyword arguments are not exactly its schema's properties, with the same defaults."""
    _, *parameters = inspect.signature(handler).parameters.values()
    actual = {p.name: ... if p.default is p.empty else p.default for p in parameters}
    if definition["kind"] == "resource":
        expected: dict[str, Any] = dict.fromkeys(re.findall(r"\{([a-z_]+)\}", definition["uriTemplate"]), ...)
    else:
        schema = definition["inputSchema"]
        required = schema.get("required", [])
        expected = {key: ... if key in required else spec.get("default") for key, spec in schema["properties"].items()}
    if actual != expected:
        file = f"schemas/{definition['name'].replace('.', '/')}.json"
        raise SchemaError(f"{file} says {_words(expected)}; {handler.__module__}.{handler.__name__} takes {_words(actual)}")


def _refuse_leaks(definition: Mapping[str, Any]) -> None:
    """Refuse a unit that would keep or give back what it marks as for writing only."""
    file = f"schemas/{definition['name'].replace('.', '/')}.json"
    if definition.get("durable") and keeps_private(definition["inputSchema"]):
        raise SchemaError(f"{file} is durable, so its input is kept, and has a writeOnly property, which must not be")
    for key in ("outputSchema", "streamSchema", "payloadSchema"):
        if keeps_private(definition.get(key)):
            raise SchemaError(f"{file}: {key} has a writeOnly property")
    for key, spec in definition.get("inputSchema", {}).get("properties", {}).items():
        if spec.get("format") == "password" and not is_secret(spec):
            raise SchemaError(f"{file}: {key} is a password, so it is writeOnly")


def _words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(key if value is ... else f"{key}={value!r}" for key, value in parameters.items()) or "nothing"


def _refuse_dangling(units: Mapping[str, Unit]) -> None:
    for unit in units.values():
        file = f"schemas/{unit.name.replace('.', '/')}.json"
        for key in ("emits", "updatedBy"):
            for name in unit.definition.get(key, []):
                if name != "*" and (name not in units or units[name].kind != "event"):
                    raise SchemaError(f"{file}: {key} names {name!r}, which is no event")
        for key, call in unit.elsewhere.items():
            if key not in unit.definition["inputSchema"]["properties"] or call["unit"] not in units:
                raise SchemaError(f"{file}: elsewhere names {key!r} or {call['unit']!r}, which is not there")
        for name in _sources(unit.definition):
            if name != "unit" and (name not in units or units[name].kind != "query" or "primary" not in units[name].definition):
                raise SchemaError(f"{file}: completes names {name!r}, which lists nothing")
        if unit.kind == "prompt":
            blanks = set(re.findall(r"\{([a-z_]+)\}", unit.definition["text"]))
            if blanks != (known := {argument["name"] for argument in unit.definition["arguments"]}):
                raise SchemaError(f"{file} takes {sorted(known)}; its text has blanks for {sorted(blanks)}")


def _sources(definition: Mapping[str, Any]) -> Iterator[str]:
    """The units that list what a prompt's arguments, or a resource's variables, may be."""
    for argument in definition.get("arguments", []):
        yield from argument.get("completes", [])
    for names in definition.get("completes", {}).values():
        yield from names


def _marks(schema: Mapping[str, Any]) -> Marks | None:
    if (most := schema.get("x-untrusted")) is not None:
        return int(most)
    below = {key: _marks(child) for key, child in schema.get("properties", {}).items()}
    if isinstance(items := schema.get("items"), Mapping):
        below["[]"] = _marks(items)
    return {key: marks for key, marks in below.items() if marks is not None} or None
