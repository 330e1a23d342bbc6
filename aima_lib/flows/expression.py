"""Expressions: what an `if` and a trigger's `when` are written in. A small grammar, read by hand; nothing is ever executed.

    steps.detect.detections and not input.quick
    ${steps.score.value} >= 0.5 or input.mode in ["fast", "draft"]
    default(input.language, "en") == "en"          the same as (input.language ?? "en") == "en"
    event("model.pulled") and event.payload.bytes > 1000000

From the loosest to the tightest: `or`, `and`, `not`, one comparison (== != < <= > >= in, not in), `??`. References stand with `${}` or
without. What is absent is null. `and`, `or` and `not` take null, false, 0 and what is empty as false, and give true or false.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.flows.reference import ABSENT, Literal, Reference, Tokens, follow, read_literal, read_reference

LONGEST = 4096
DEEPEST = 32
ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator and what it works on: or, and, not, ??, list, a comparison, or event."""

    sign: str
    parts: tuple[Node, ...]


Node = Literal | Reference | Operation


def evaluate(text: str, scope: Mapping[str, Any], primary: Mapping[str, str] | None = None) -> Any:
    """The value of an expression. `scope` and `primary` are those of `reference.resolve`; `event("x")` asks scope["event"]["type"].

    Raises:
        InvalidArgument: it is no expression, or compares what has no order.
    """
    return _value(parse(text), scope, primary)


def truth(value: Any) -> bool:
    """Whether a condition with this value holds."""
    return bool(value)


def read_by(text: str) -> list[Reference]:
    """Every reference in an expression. Raises InvalidArgument where it is none."""
    return [found for node in nodes(parse(text)) if isinstance(node, Reference) for found in node.all()]


def events(text: str) -> frozenset[str]:
    """The events that an expression asks for with `event("…")`."""
    asked = (node.parts[0] for node in nodes(parse(text)) if isinstance(node, Operation) and node.sign == "event")
    return frozenset(str(name.value) for name in asked if isinstance(name, Literal))


def nodes(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for part in node.parts if isinstance(node, Operation) else ():
        yield from nodes(part)


def parse(text: str) -> Node:
    """The expression as a tree, at most 32 deep.

    Raises:
        InvalidArgument: it is longer than 4,096 characters, deeper, or not well written.
    """
    if len(text) > LONGEST:
        raise InvalidArgument(f"an expression has at most {LONGEST} characters, this one has {len(text)}")
    return _parse(text)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Node:
    parser = _Parser(text)
    node = parser.either()
    if parser.tokens.kind != "end":
        raise parser.tokens.error("the expression should end here")
    return node


class _Parser:
    """One method a level of the grammar."""

    def __init__(self, text: str) -> None:
        self.tokens = Tokens(text)
        self._depth = 0

    def either(self) -> Node:
        return self._chain("or", self._both)

    def _both(self) -> Node:
        return self._chain("and", self._negated)

    def _chain(self, sign: str, below: Callable[[], Node]) -> Node:
        parts = [below()]
        while self.tokens.take(sign):
            parts.append(below())
        return Operation(sign, tuple(parts)) if len(parts) > 1 else parts[0]

    def _negated(self) -> Node:
        if not self.tokens.take("not"):
            return self._compared()
        return Operation("not", (self._deeper(self._negated),))

    def _compared(self) -> Node:
        left = self._filled()
        sign = next((sign for sign in ("==", "!=", *ORDERS, "in") if self.tokens.take(sign)), None)
        if sign is None and self.tokens.take("not"):
            self.tokens.expect("in")
            sign = "not in"
        return Operation(sign, (left, self._filled())) if sign else left

    def _filled(self) -> Node:
        return self._chain("??", self._operand)

    def _operand(self) -> Node:
        tokens = self.tokens
        if tokens.take("("):
            return self._deeper(self.either, ")")
        if tokens.take("${"):
            return self._deeper(self._filled, "}")
        if tokens.take("["):
            return Operation("list", tuple(self._listed("]")))
        if (literal := read_literal(tokens)) is not None:
            return literal
        if tokens.word == "default" and tokens.kind == "name":
            tokens.advance()
            return Operation("??", tuple(self._called(2)))
        return self._event() or read_reference(tokens)

    def _event(self) -> Node | None:
        """`event("name")`, where it is that and no reference."""
        tokens = self.tokens
        if tokens.word != "event" or not tokens.text[tokens.end :].lstrip(" \t\r\n").startswith("("):
            return None
        tokens.advance()
        (name,) = self._called(1)
        if not isinstance(name, Literal) or not isinstance(name.value, str):
            raise tokens.error("event takes the name of an event in quotes")
        return Operation("event", (name,))

    def _called(self, count: int) -> list[Node]:
        self.tokens.expect("(")
        given = self._listed(")")
        if len(given) != count:
            raise self.tokens.error(f"{count} {'value is' if count == 1 else 'values are'} expected between the parentheses")
        return given

    def _listed(self, end: str) -> list[Node]:
        parts: list[Node] = []
        while not self.tokens.take(end):
            if parts:
                self.tokens.expect(",")
            parts.append(self._deeper(self.either))
        return parts

    def _deeper(self, read: Callable[[], Node], end: str | None = None) -> Node:
        if self._depth == DEEPEST:
            raise self.tokens.error(f"an expression is at most {DEEPEST} levels deep")
        self._depth += 1
        node = read()
        self._depth -= 1
        if end:
            self.tokens.expect(end)
        return node


def _value(node: Node, scope: Mapping[str, Any], primary: Mapping[str, str] | None) -> Any:
    if isinstance(node, Literal):
        return node.value
    if isinstance(node, Reference):
        found = follow(node, scope, primary)
        return None if found is ABSENT else found
    values = (_value(part, scope, primary) for part in node.parts)  # each only when it is asked for
    match node.sign:
        case "or":
            return any(map(truth, values))
        case "and":
            return all(map(truth, values))
        case "not":
            return not truth(next(values))
        case "??":
            return next((value for value in values if value is not None), None)
        case "list":
            return list(values)
        case "event":
            return (scope.get("event") or {}).get("type") == next(values)
        case sign:
            return _compare(sign, next(values), next(values))


def _compare(sign: str, left: Any, right: Any) -> bool:
    if sign in ("==", "!="):
        return _same(left, right) == (sign == "==")
    if sign in ("in", "not in"):
        return _inside(left, right) == (sign == "in")
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        hint = "null is what is absent: write x ?? 0" if None in (left, right) else None
        raise InvalidArgument(f"{_kind(left)} {sign} {_kind(right)}: two numbers have an order, and two texts", hint=hint)
    return ORDERS[sign](left, right)


def _same(left: Any, right: Any) -> bool:
    """Equality of JSON values: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return bool(left == right)


def _inside(item: Any, whole: Any) -> bool:
    if isinstance(whole, list):
        return any(_same(item, each) for each in whole)
    if isinstance(item, str) and isinstance(whole, str | dict):
        return item in whole
    raise InvalidArgument(f"{_kind(item)} in {_kind(whole)}: a list holds values, an object keys, and a text texts")


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a value")
