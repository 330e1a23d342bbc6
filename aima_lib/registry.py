"""What exists: unit files read from `schemas/`, each bound to its handler."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

Handler = Callable[..., Awaitable[Mapping[str, Any]]]
PACKAGE = Path(__file__).parent
# A wheel ships the schemas inside the package; a checkout keeps them at the top, where people look for them.
SCHEMAS = PACKAGE / "schemas" if (PACKAGE / "schemas").is_dir() else PACKAGE.parent / "schemas"


UNHANDLED = ("event", "prompt")  # kinds that are no more than their file


class SchemaError(TypeError):
    """A unit file and the code disagree: AIMA refuses to start."""


def handles(name: str) -> Callable[[Handler], Handler]:
    """Mark a coroutine function as the handler of the unit or resource called `name`."""

    def mark(function: Handler) -> Handler:
        function.__unit__ = name  # type: ignore[attr-defined]
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
    """One schema, compiled. The validator is imported late: listing units needs none."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        import jsonschema_rs

        self._validator = jsonschema_rs.Draft202012Validator(dict(schema))

    def first_error(self, value: Any) -> str | None:
        """What is wrong with `value`, with its path, or None. Numbers JSON cannot carry are wrong too."""
        try:
            if self._validator.is_valid(value):
                return None
            error = next(iter(self._validator.iter_errors(value)))
        except (ValueError, TypeError) as unfit:
            return f"not a JSON value: {unfit}"
        where = ".".join(str(step) for step in error.instance_path)
        return f"{where}: {error.message}" if where else str(error.message)


@dataclass(frozen=True)
class Unit:
    """One unit file, with its references inlined, and its handler (None for events, prompts and attached clients)."""

    definition: Mapping[str, Any]
    handler: Handler | None = None

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

    @cached_property
    def input(self) -> Judge:
        return Judge(self.definition["inputSchema"])

    @cached_property
    def output(self) -> Judge:
        return Judge(self.definition["outputSchema"])

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
    """All units, by name."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._units = dict(units)

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
        found = _marked(handlers)
        units = {}
        for definition in definitions(schemas):
            name, handler = definition["name"], None
            if definition["kind"] not in UNHANDLED:
                if name not in found:
                    raise SchemaError(f"schemas/{name.replace('.', '/')}.json has no handler")
                handler = found.pop(name)
                _agree(definition, handler)
            units[name] = Unit(definition, handler)
        if found:
            raise SchemaError(f"handlers without a schema file: {', '.join(sorted(found))}")
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
            target = (source.parent / reference).resolve()
            try:
                noun = json.loads(target.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SchemaError(f"{source} refers to {reference}, which cannot be read: {error}") from error
            return inline({**noun, **{key: value for key, value in node.items() if key != "$ref"}}, target)
        return {key: inline(value, source) for key, value in node.items()}
    return [inline(item, source) for item in node] if isinstance(node, list) else node


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} cannot be read: {error}") from error


def _noun(name: str) -> dict[str, Any]:
    path = SCHEMAS / "types" / f"{name}.json"
    noun: dict[str, Any] = inline(json.loads(path.read_text(encoding="utf-8")), path)
    return noun


def _marked(package: ModuleType) -> dict[str, Handler]:
    found: dict[str, Handler] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for function in vars(module).values():
            if (name := getattr(function, "__unit__", None)) is None or function.__module__ != module.__name__:
                continue
            if name in found:
                raise SchemaError(f"{name} has two handlers: {found[name].__module__} and {module.__name__}")
            found[name] = function
    return found


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


def _words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(key if value is ... else f"{key}={value!r}" for key, value in parameters.items()) or "nothing"


def _refuse_dangling(units: Mapping[str, Unit]) -> None:
    for unit in units.values():
        file = f"schemas/{unit.name.replace('.', '/')}.json"
        for key in ("emits", "updatedBy"):
            for name in unit.definition.get(key, []):
                if name != "*" and (name not in units or units[name].kind != "event"):
                    raise SchemaError(f"{file}: {key} names {name!r}, which is no event")
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
