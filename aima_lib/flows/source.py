"""Strict YAML: the JSON value of a document and the place of each part of it. Nothing in the text makes it do more than read.

A plain scalar is what YAML 1.2 and JSON make of it: `no`, `on` and `12:30:45` are text. Anchors, aliases, tags, repeated keys and whatever
JSON cannot hold are refused, and so is a document that is too long, too deep or of too many parts, before it costs anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from aima_lib.errors import InvalidArgument

LONGEST = 256 * 1024  # characters of a document
DEEPEST = 32
MOST = 10_000  # values in a document
TOLD = 100  # issues of one document
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PLAIN = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
DIGITS = 40
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

Path = tuple[str | int, ...]
Place = tuple[int, int]  # line and column, each counted from 1


@dataclass(frozen=True, slots=True)
class Issue:
    """What is wrong with a document, and where. Line and column count from 1; None where the document was no text."""

    path: str
    message: str
    line: int | None = None
    column: int | None = None
    suggestion: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The wire form."""
        return asdict(self)

    def __str__(self) -> str:
        where = [] if self.line is None else [f"line {self.line}, column {self.column}"]
        return ": ".join([*where, *filter(None, [self.path]), self.message])


def refusal(what: str, issues: list[Issue]) -> InvalidArgument:
    """The error that tells these issues: the first in its message, all (up to 100) in its details."""
    more = f" (and {len(issues) - 1} more)" if len(issues) > 1 else ""
    details = {"issues": [issue.as_dict() for issue in issues[:TOLD]]}
    return InvalidArgument(f"{what}: {issues[0]}{more}", hint=issues[0].suggestion, details=details)


def in_order(issues: list[Issue]) -> list[Issue]:
    """The issues as their places follow each other in the document."""
    return sorted(issues, key=lambda issue: (issue.line or 0, issue.column or 0))


class Places:
    """Where each value of a document stands, and each key."""

    def __init__(self) -> None:
        self.values: dict[Path, Place] = {}
        self.keys: dict[Path, Place] = {}

    def issue(self, path: Path, message: str, suggestion: str | None = None, *, key: bool = False) -> Issue:
        """The issue with what stands at a path (with its key, if so), placed there or at the nearest part around it."""
        place = self.keys.get(path) if key else None
        around = (self.values.get(path[:length]) for length in range(len(path), -1, -1))
        line, column = place or next(filter(None, around), (None, None))
        return Issue(spelled(path), message, line, column, suggestion)


def spelled(path: Path) -> str:
    """A path as people write it: `steps[1].input.audio`."""
    text = ""
    for part in path:
        if isinstance(part, str) and NAME.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def parse(text: str) -> tuple[Any, Places]:
    """The JSON value of a YAML document, and its places.

    Raises:
        InvalidArgument: it is none, or does what is not allowed; its details hold the issue.
    """
    if len(text) > LONGEST:
        raise refusal("this is no document", [Issue("", f"it has {len(text)} characters; {LONGEST} are allowed")])
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise refusal("this is not YAML", [Issue("", error.problem or "it breaks off", line, column)]) from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise refusal("this is not YAML", [Issue("", "it holds a character that no document may hold")]) from error
    return reader.value, reader.places


def plain(value: Any) -> Any:
    """A copy of a JSON value, if a document may be so big and so deep.

    Raises:
        InvalidArgument: it may not, or JSON cannot hold it.
    """
    counted = [0, 0]

    def refuse(path: Path, message: str) -> InvalidArgument:
        return refusal("this is no document", [Issue(spelled(path), message)])

    def copy(node: Any, path: Path) -> Any:
        counted[0] += 1
        counted[1] += len(node) if isinstance(node, str) else 0
        if counted[0] > MOST or len(path) > DEEPEST or counted[1] > LONGEST:
            raise refuse(path[:2], f"it has more than {MOST} values, {LONGEST} characters or {DEEPEST} levels")
        if isinstance(node, Mapping):
            if unfit := next((key for key in node if not isinstance(key, str)), None):
                raise refuse(path, f"the key {unfit!r} is no text")
            counted[1] += sum(map(len, node))
            if not all(map(_writable, node)):
                raise refuse(path, "a key holds a lone surrogate")
            return {key: copy(item, (*path, key)) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [copy(item, (*path, place)) for place, item in enumerate(node)]
        if isinstance(node, str) and not _writable(node):
            raise refuse(path, "the text holds a lone surrogate")
        if isinstance(node, int) and abs(node) >= 10**DIGITS:
            raise refuse(path, f"a number has at most {DIGITS} digits")
        if node is None or isinstance(node, bool | int | str) or (isinstance(node, float) and math.isfinite(node)):
            return node
        raise refuse(path, f"a {type(node).__name__} is no JSON value")

    return copy(value, ())


def _writable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


class _Reader:
    """Builds the value from the parser's events: no recursion, no object but dict, list and scalars."""

    def __init__(self) -> None:
        self.value: Any = None
        self.places = Places()
        self._open: list[tuple[Any, Path]] = []  # containers that are not closed yet
        self._key: list[str | None] = []  # of each: the key that waits for its value
        self._count = self._documents = 0

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse(event, "anchors and aliases are not used here", "write the value out where it is needed")
        if getattr(event, "tag", None):
            self._refuse(event, f"the tag {str(event.tag)[:40]!r} is not used here", "quote a value that is to be text")
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._refuse(event, "a second document begins", "one file holds one pipeline")
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._key.pop()

    def _scalar(self, event: Any) -> None:
        if self._open and isinstance(self._open[-1][0], dict) and self._key[-1] is None:
            self._name(event)
            return
        text = event.value
        self._place(event, text if event.style else self._resolved(event, text))

    def _name(self, event: Any) -> None:
        container, path = self._open[-1]
        key = event.value
        if key in container:
            self._refuse(event, f"the key {key[:60]!r} is here twice", "keep one of them", (*path, key))
        self.places.keys[(*path, key)] = _place(event)
        self._key[-1] = key

    def _begin(self, event: Any) -> None:
        if self._open and isinstance(self._open[-1][0], dict) and self._key[-1] is None:
            self._refuse(event, "a key is a single word or text", "quote a text that begins with a bracket or a brace")
        container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._place(event, container)
        if len(path) >= DEEPEST:
            self._refuse(event, f"it is deeper than {DEEPEST} levels")
        self._open.append((container, path))
        self._key.append(None)

    def _place(self, event: Any, value: Any) -> Path:
        """Put a value where it belongs; returns its path."""
        self._count += 1
        if self._count > MOST:
            self._refuse(event, f"it has more than {MOST} values", "a pipeline has at most 200 steps; one can run another")
        if not self._open:
            path: Path = ()
            self.value = value
        else:
            container, around = self._open[-1]
            if isinstance(container, dict):
                key = self._key[-1] or ""
                container[key], path, self._key[-1] = value, (*around, key), None
            else:
                path = (*around, len(container))
                container.append(value)
        self.places.values[path] = _place(event)
        return path

    def _resolved(self, event: Any, text: str) -> Any:
        """What a plain scalar is."""
        if text in PLAIN:
            return PLAIN[text]
        if not NUMBER.fullmatch(text) and not INTEGER.fullmatch(text):
            return text
        if len(text) > DIGITS:
            self._refuse(event, f"a number has at most {DIGITS} digits", "quote it, if it is text")
        if INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        number = math.inf if "n" in text.lower() else float(text)
        if not math.isfinite(number):
            self._refuse(event, f"{text} is no JSON number", "quote it, if it is text")
        return number

    def _refuse(self, event: Any, message: str, suggestion: str | None = None, path: Path | None = None) -> None:
        line, column = _place(event)
        if path is None and self._open:
            path = self._open[-1][1] + ((self._key[-1],) if self._key[-1] is not None else ())
        raise refusal("this is no document", [Issue(spelled(path or ()), message, line, column, suggestion)])


def _place(event: Any) -> Place:
    return event.start_mark.line + 1, event.start_mark.column + 1
