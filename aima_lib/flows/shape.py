"""What JSON Schemas say of each other: where a path leads in one, and whether what obeys one can obey another.

The answers are sound in one direction: "it cannot be" is said only of what no value can be. What is not understood may be.
One exception: a list that could only pass while it is empty counts as one that cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.flows.reference import Each

Schema = Mapping[str, Any]
ANY: Schema = {}
TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
DEEPEST = 16
BRANCHES = ("anyOf", "oneOf")
ARTICLES = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false", "array": "a list"}
ARTICLES |= {"object": "an object", "null": "null"}


class Nowhere(InvalidArgument):
    """A path leads to nothing that can be. `word` is what was looked for, `known` what there is."""

    def __init__(self, message: str, word: str = "", known: Collection[str] = ()) -> None:
        super().__init__(message)
        self.word, self.known = word, known


def types(schema: Schema) -> frozenset[str]:
    """The types that a value may have; a number may be an integer."""
    said = schema.get("type")
    found = TYPES if said is None else frozenset([said] if isinstance(said, str) else said)
    if "number" in found:
        found |= {"integer"}
    if (values := _values(schema)) is not None:
        found &= frozenset(map(_type, values))
    for key in BRANCHES:
        if key in schema:
            found &= frozenset().union(*(types(as_schema(branch)) for branch in schema[key]))
    for branch in schema.get("allOf", ()):
        found &= types(as_schema(branch))
    return found


def spoken(schema: Schema) -> str:
    """The types in words."""
    found = types(schema)
    said = [kind for kind in ARTICLES if kind in found and not (kind == "integer" and "number" in found)]
    return " or ".join(ARTICLES[kind] for kind in said) if found != TYPES else "any value"


def lead(schema: Schema, path: Sequence[str | int | Each | None], walked: str = "") -> Schema:
    """What stands at a path of a value that obeys the schema; None is some place of a list.

    Raises:
        Nowhere: nothing can stand there.
    """
    for at, part in enumerate(path):
        if isinstance(part, Each):
            return {"type": "array", "items": lead(_items(schema, walked), path[at + 1 :], f"{walked}[*]")}
        if part is None or isinstance(part, int):
            schema, walked = _items(schema, walked, part), f"{walked}[{'…' if part is None else part}]"
        else:
            schema, walked = _field(schema, part, walked), f"{walked}.{part}"
    return schema


def _field(schema: Schema, name: str, walked: str) -> Schema:
    branches = list(_branches(schema))
    found = [field for branch in branches if (field := own_field(branch, name)) is not None]
    if not found:
        if "object" not in types(schema):
            raise Nowhere(f"{walked} is {spoken(schema)}, and has no field {name[:64]!r}")
        known = sorted({key for branch in branches for key in _known(branch)})
        raise Nowhere(f"{walked} has no field {name[:64]!r}", name[:64], known)
    return found[0] if len(found) == 1 else {"anyOf": found}


def _known(schema: Schema) -> Iterator[str]:
    yield from schema.get("properties", {})
    if isinstance(schema.get("const"), Mapping):
        yield from schema["const"]


def own_field(schema: Schema, name: str) -> Schema | None:
    if "object" not in types(schema):
        return None
    if "const" in schema:
        return written(schema["const"][name]) if name in schema["const"] else None
    known = schema.get("properties", {})
    if name in known:
        return as_schema(known[name])
    rest = ANY if "patternProperties" in schema else schema.get("additionalProperties", True)
    return None if rest is False else as_schema(rest)


def _items(schema: Schema, walked: str, place: int | None = None) -> Schema:
    found = [items for branch in _branches(schema) if (items := own_items(branch, place)) is not None]
    if not found:
        if "array" in types(schema):
            raise Nowhere(f"{walked} is a list that never is so long")
        raise Nowhere(f"{walked} is {spoken(schema)}, and no list")
    return found[0] if len(found) == 1 else {"anyOf": found}


def own_items(schema: Schema, place: int | None) -> Schema | None:
    if "array" not in types(schema) or (place is not None and schema.get("maxItems", place + 1) <= place):
        return None
    if "const" in schema:
        return {"anyOf": [written(item) for item in schema["const"]]} if schema["const"] else ANY
    first = schema.get("prefixItems")
    if first is None:
        return as_schema(schema.get("items", True))
    if place is not None and 0 <= place < len(first):
        return as_schema(first[place])
    return {"anyOf": [*map(as_schema, first), as_schema(schema.get("items", True))]}


def _branches(schema: Schema) -> Iterator[Schema]:
    """The schema as its alternatives, each with what holds beside them."""
    key = next((key for key in BRANCHES if key in schema), None)
    if key is None:
        yield schema
        return
    rest = {name: value for name, value in schema.items() if name != key}
    for branch in schema[key]:
        yield rest | dict(as_schema(branch))


class Fit:
    """Whether what obeys one schema can obey another. After so many comparisons it says yes: a check costs no more than that."""

    def __init__(self, comparisons: int = 10_000) -> None:
        self._left = comparisons
        self._said: dict[tuple[int, int], tuple[Schema, Schema, str | None]] = {}  # holds the schemas, so that their ids stay theirs

    def clash(self, given: Schema, wanted: Schema) -> str | None:
        """Why nothing that obeys `given` can obey `wanted`, or None where something may."""
        pair = (id(given), id(wanted))
        if pair not in self._said:
            self._said[pair] = (given, wanted, self._clash(given, wanted, 0))
        return self._said[pair][2]

    def _clash(self, given: Schema, wanted: Schema, depth: int) -> str | None:
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            return None
        for schema, other, swapped in ((given, wanted, False), (wanted, given, True)):
            for key in BRANCHES:
                if key in schema:
                    pairs = [(other, as_schema(b)) if swapped else (as_schema(b), other) for b in schema[key]]
                    reasons = [self._clash(*pair, depth + 1) for pair in pairs]
                    if reasons and None not in reasons:  # of two of one kind, what differs inside tells more
                        return next((reasons[at] for at, pair in enumerate(pairs) if types(pair[0]) & types(pair[1])), reasons[0])
        return self._kinds(given, wanted) or self._chosen(given, wanted) or self._inside(given, wanted, depth)

    def _kinds(self, given: Schema, wanted: Schema) -> str | None:
        if types(given) & types(wanted):
            return None
        return f"it is {spoken(given)}, and {spoken(wanted)} is wanted"

    @staticmethod
    def _chosen(given: Schema, wanted: Schema) -> str | None:
        """Enumerated values, and bounds of numbers and lengths."""
        mine, theirs = _values(given), _values(wanted)
        if mine is not None and theirs is not None and not any(value in theirs for value in mine):
            return f"it is one of {_listed(mine)}, and one of {_listed(theirs)} is wanted"
        return next(filter(None, (_apart(given, wanted, *pair) for pair in BOUNDS)), None)

    def _inside(self, given: Schema, wanted: Schema, depth: int) -> str | None:
        """What objects and lists hold, where both can be nothing else."""
        both = types(given) & types(wanted)
        if both == {"object"}:
            return self._fields(given, wanted, depth)
        if both != {"array"} or "prefixItems" in given or "prefixItems" in wanted:
            return None
        reason = self._clash(as_schema(given.get("items", True)), as_schema(wanted.get("items", True)), depth + 1)
        return f"of each of its items: {reason}" if reason else None

    def _fields(self, given: Schema, wanted: Schema, depth: int) -> str | None:
        for key in wanted.get("required", ()):
            if own_field(given, key) is None and not any(branch in given for branch in (*BRANCHES, "allOf")):
                return f"it never has the field {key!r}, which is wanted"
        for key in given.get("required", ()):
            theirs = own_field(wanted, key)
            if theirs is None and not any(branch in wanted for branch in (*BRANCHES, "allOf")):
                return f"it has the field {key!r}, which is not taken"
            mine = own_field(given, key)
            if mine is not None and theirs is not None and (reason := self._clash(mine, theirs, depth + 1)):
                return f"of its field {key!r}: {reason}"
        return None


BOUNDS = (
    ("number", "minimum", "maximum"),
    ("string", "minLength", "maxLength"),
    ("array", "minItems", "maxItems"),
    ("object", "minProperties", "maxProperties"),
)


def _apart(given: Schema, wanted: Schema, kind: str, least: str, most: str) -> str | None:
    """Why two ranges do not meet, where both can be only of that kind."""
    both = types(given) & types(wanted)
    if not both or not both <= ({"number", "integer"} if kind == "number" else {kind}):
        return None
    for low, high in ((given, wanted), (wanted, given)):
        if least in low and most in high and low[least] > high[most]:
            side = "at least" if low is given else "at most"
            return f"its {least if low is given else most} is {low[least] if low is given else high[most]}: {side} that is too far"
    return None


def written(value: Any) -> Schema:
    """The schema of a value that is known."""
    return {"const": value}


def as_schema(schema: Any) -> Schema:
    """A schema as an object: true is any value, false is none."""
    if isinstance(schema, Mapping):
        return schema
    return ANY if schema is not False else {"enum": []}


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (" …" if len(values) > 8 else "")
