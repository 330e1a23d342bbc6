"""References: `${steps.chat.content}` inside the values of a document, read, listed and replaced by what they stand for.

    ${input.audio}                        what the pipeline was given
    ${steps.detect.detections[0].label}   a step's output: fields, places in lists (-1 is the last), ["any key"]
    ${steps.detect.detections[*].label}   of each of a list: a list
    ${steps.search.matches[steps.rerank.results[*].index].document}   at the place, or the places, that another reference says
    ${steps.chat.response}                the field that the step's unit calls its primary one
    ${item}  ${item.path}                 what for_each is at
    ${run.id}  ${config.model}            the run's id; a constant of the document
    ${event.payload.model_id}             what set off the run; only in a trigger
    ${input.voice ?? "joe"}               the second where the first is absent or null

A text that is one reference and nothing else keeps the value's type. In other text, what it stands for is written: text as it is, anything
else as JSON. `$${` is a plain `${`. What a reference brings is data: references inside of it are not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from aima_lib.errors import InvalidArgument
from aima_lib.flows.source import NAME, Path
from aima_lib.names import did_you_mean

ROOTS = ("input", "steps", "item", "run", "config", "event")
LONGEST_TEXT = 16 * 1024 * 1024  # characters that the texts of one value may grow to
PARTS = 32  # of one path
DEEPEST = 4  # references in the brackets of references
KEPT = 4096  # characters of a text that is kept parsed
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][-+]?[0-9]{1,3})?(?![A-Za-z0-9_]))
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[A-Za-z_][A-Za-z0-9_-]*)
      | (?P<sign>\$\{|\?\?|==|!=|<=|>=|[<>()\[\]{},.*])""",
    re.VERBOSE | re.DOTALL,
)
ESCAPED = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
ABSENT: Any = object()  # what a path leads to where there is nothing


@dataclass(frozen=True, slots=True)
class Each:
    """`[*]`: all of a list."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One path: where it begins and what it goes through."""

    root: str
    path: tuple[str | int | Each | Reference, ...]

    @property
    def step(self) -> str | None:
        """The step whose output it reads, if it reads one."""
        return str(self.path[0]) if self.root == "steps" else None

    def all(self) -> Iterator[Reference]:
        """It, and those in its brackets."""
        yield self
        for part in self.path:
            if isinstance(part, Reference):
                yield from part.all()

    def __str__(self) -> str:
        return self.root + "".join(map(_spelled, self.path))


Part = str | int | Each | Reference
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that is written where a reference could stand."""

    value: Any


@dataclass(frozen=True, slots=True)
class Slot:
    """One `${…}`: the first of these that is there and not null."""

    choices: tuple[Reference | Literal, ...]

    @property
    def references(self) -> list[Reference]:
        """Every reference in it, also in brackets."""
        return [found for choice in self.choices if isinstance(choice, Reference) for found in choice.all()]

    def __str__(self) -> str:
        return f"${{{' ?? '.join(str(c) if isinstance(c, Reference) else json.dumps(c.value, ensure_ascii=False) for c in self.choices)}}}"


Piece = str | Slot


def resolve(value: Any, scope: Mapping[str, Any], primary: Mapping[str, str] | None = None) -> Any:
    """The value with every reference replaced.

    scope: {"input": …, "steps": {id: output}, "item": …, "run": {"id": …}, "config": constants}; what is not in it is absent. The output
        of a step with for_each is the list of its outputs. That of a step that was skipped, or failed and was to go on, is None.
    primary: of each step, the field that its unit calls primary. `${steps.id.response}` is that field, of a list of outputs that of each.

    A key whose whole value is absent is left out, so that an optional input goes on as one.

    Raises:
        InvalidArgument: what is absent stands in a text, in a list, or alone; or null stands in a text; or the text grows beyond 16 MiB.
    """
    grown = 0

    def text(pieces: tuple[Piece, ...]) -> str:
        nonlocal grown
        written = []
        for piece in pieces:
            written.append(piece if isinstance(piece, str) else _written(piece, look(piece, scope, primary)))
            grown += len(written[-1])
            if grown > LONGEST_TEXT:
                raise InvalidArgument(f"with {piece} the text is longer than {LONGEST_TEXT} characters", hint="hand on a part of it")
        return "".join(written)

    def fill(node: Any) -> Any:
        if isinstance(node, str):
            pieces = pieces_of(node)
            whole = whole_of(pieces)
            return text(pieces) if whole is None else look(whole, scope, primary)
        if isinstance(node, Mapping):
            return {key: filled for key, item in node.items() if (filled := fill(item)) is not ABSENT}
        return [_there(item, fill(item)) for item in node] if isinstance(node, list | tuple) else node

    return _there(value, fill(value))


def references(value: Any) -> list[Reference]:
    """Every reference inside a value, in the order they stand.

    Raises:
        InvalidArgument: one is not well written.
    """
    return [found for _, _, slot in slots(value) for found in slot.references]


def slots(value: Any, path: Path = ()) -> Iterator[tuple[Path, bool, Slot]]:
    """Every `${…}` inside a value: its path, whether it is the whole text there, and what it is. Raises InvalidArgument as `references`."""
    if isinstance(value, str):
        pieces = pieces_of(value)
        yield from ((path, len(pieces) == 1, piece) for piece in pieces if isinstance(piece, Slot))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from slots(item, (*path, key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from slots(item, (*path, place))


def look(slot: Slot, scope: Mapping[str, Any], primary: Mapping[str, str] | None = None) -> Any:
    """What a slot stands for, or ABSENT."""
    found = ABSENT
    for choice in slot.choices:
        found = choice.value if isinstance(choice, Literal) else follow(choice, scope, primary)
        if found is not ABSENT and found is not None:
            break
    return found


def follow(reference: Reference, scope: Mapping[str, Any], primary: Mapping[str, str] | None = None) -> Any:
    """What a reference leads to, or ABSENT."""
    value, path = scope.get(reference.root, ABSENT), reference.path
    if reference.root == "steps":
        step = str(path[0])
        value = value.get(step, ABSENT) if isinstance(value, Mapping) else ABSENT
        path = main_field(path[1:], (primary or {}).get(step), isinstance(value, list))
    return _walk(value, path, lambda inner: follow(inner, scope, primary))


def main_field(path: tuple[P, ...], field: str | None, many: bool) -> tuple[P | str | Each, ...]:
    """A path into a step's output, with `response` as the field it means; of `many` outputs, that of each."""
    if field is None or not path:
        return path
    if path[0] == "response":
        return (Each(), field, *path[1:]) if many else (field, *path[1:])
    return (path[0], field, *path[2:]) if many and path[1:2] == ("response",) else path


def whole_of(pieces: tuple[Piece, ...]) -> Slot | None:
    """The reference that a text is, where it is one and nothing else."""
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], Slot) else None


def pieces_of(text: str) -> tuple[Piece, ...]:
    """A text as what is written and what is looked up. Raises InvalidArgument where a `${` is not well written."""
    if "${" not in text:
        return (text,)
    return _kept(text) if len(text) <= KEPT else _pieces(text)


class Tokens:
    """The words and signs of a text from a place on, one at a time. Raises InvalidArgument at what is neither."""

    def __init__(self, text: str, start: int = 0) -> None:
        self.text = text
        self.end = start
        self.advance()

    def advance(self) -> None:
        """On to the next; `kind` is "end" after the last."""
        self.start = self.end
        if self.start >= len(self.text):
            self.kind, self.word = "end", ""
            return
        found = TOKEN.match(self.text, self.start)
        if found is None:
            raise self.error(f"{self.text[self.start]!r} has no meaning")
        self.end, self.kind, self.word = found.end(), str(found.lastgroup), found.group()
        if self.kind == "space":
            self.advance()

    def take(self, word: str) -> bool:
        """Go over this sign or word, if it is here."""
        if self.word != word or self.kind not in ("sign", "name"):
            return False
        self.advance()
        return True

    def expect(self, word: str) -> None:
        """Go over this sign. Raises InvalidArgument where it is not."""
        if not self.take(word):
            raise self.error(f"{word!r} is missing")

    def error(self, message: str) -> InvalidArgument:
        """The error of what is here."""
        around = self.text[max(self.start - 20, 0) : self.start + 20]
        return InvalidArgument(f"{message}, at character {self.start + 1}, near {around!r}")


def read_literal(tokens: Tokens) -> Literal | None:
    """The number, text or word for a value that is here, if one is."""
    kind, word = tokens.kind, tokens.word
    if kind == "number":
        value: Any = float(word) if set(".eE") & set(word) else int(word)
        if not math.isfinite(value):
            raise tokens.error("a number is too big")
    elif kind == "text":
        value = ESCAPED.sub(lambda found: _unescaped(found[1]), word[1:-1])
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise tokens.error("a text holds a lone surrogate")
    elif kind == "name" and word in WORDS:
        value = WORDS[word]
    else:
        return None
    tokens.advance()
    return Literal(value)


def read_reference(tokens: Tokens, depth: int = 0) -> Reference:
    """The path that is here. Raises InvalidArgument where there is none."""
    if depth > DEEPEST:
        raise tokens.error(f"references stand at most {DEEPEST} deep in brackets")
    root = tokens.word
    path: list[Part] = []
    if tokens.kind != "name" or root not in ROOTS:
        error = tokens.error(f"a reference begins with one of {', '.join(ROOTS)}, not with {root[:40]!r}")
        error.hint = did_you_mean(root[:40], ROOTS)
        raise error
    tokens.advance()
    while len(path) < PARTS and (part := _part(tokens, depth)) is not None:
        path.append(part)
    if root == "steps" and not (path and isinstance(path[0], str)):
        raise tokens.error("a reference to a step names it, as in steps.chat")
    return Reference(root, tuple(path))


def _part(tokens: Tokens, depth: int) -> Part | None:
    part: Part
    if tokens.take("."):
        if tokens.kind != "name":
            raise tokens.error("a field's name is missing after the dot")
        part = tokens.word
        tokens.advance()
        return part
    if not tokens.take("["):
        return None
    if tokens.take("*"):
        part = Each()
    elif tokens.kind == "name" and tokens.word in ROOTS:
        part = read_reference(tokens, depth + 1)
    else:
        literal = read_literal(tokens)
        if literal is None or isinstance(literal.value, bool) or not isinstance(literal.value, int | str):
            raise tokens.error("in brackets stands a whole number, a text in quotes, * or a reference")
        part = literal.value
    tokens.expect("]")
    return part


def _pieces(text: str) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    written: list[str] = []

    def flush() -> None:
        if any(written):
            pieces.append("".join(written))
        written.clear()

    at = 0
    while (found := text.find("${", at)) >= 0:
        if found > at and text[found - 1] == "$":  # the escape
            written += [text[at : found - 1], "${"]
            at = found + 2
            continue
        written.append(text[at:found])
        flush()
        slot, at = _slot(text, found + 2)
        pieces.append(slot)
    written.append(text[at:])
    flush()
    return tuple(pieces)


_kept = lru_cache(maxsize=1024)(_pieces)


def _slot(text: str, start: int) -> tuple[Slot, int]:
    """The slot that begins here, and where the text goes on."""
    tokens = Tokens(text, start)
    choices: list[Reference | Literal] = []
    while not choices or tokens.take("??"):
        choices.append(read_literal(tokens) or read_reference(tokens))
    if tokens.word != "}":
        raise tokens.error("a reference ends with }")
    return Slot(tuple(choices)), tokens.end


def _unescaped(what: str) -> str:
    return chr(int(what[1:], 16)) if len(what) == 5 else ESCAPES.get(what, what)


def _walk(value: Any, path: tuple[Part, ...], find: Callable[[Reference], Any]) -> Any:
    for at, part in enumerate(path):
        where = find(part) if isinstance(part, Reference) else part
        if isinstance(where, Each | list):  # all of a list, or these places of it
            if not isinstance(value, list):
                return ABSENT
            chosen = value if isinstance(where, Each) else [_at(value, place) for place in where]
            return [None if (found := _walk(item, path[at + 1 :], find)) is ABSENT else found for item in chosen]
        value = _at(value, where)
        if value is ABSENT:
            break
    return value


def _at(value: Any, where: Any) -> Any:
    """The field of an object, or what is at that place of a list."""
    if isinstance(where, str):
        return value.get(where, ABSENT) if isinstance(value, Mapping) else ABSENT
    if not isinstance(where, int) or isinstance(where, bool) or not isinstance(value, list):
        return ABSENT
    return value[where] if -len(value) <= where < len(value) else ABSENT


def _there(written: Any, found: Any) -> Any:
    if found is ABSENT:
        raise InvalidArgument(f"{written} is absent", hint='name what stands in for it: ${input.x ?? "…"}')
    return found


def _written(slot: Slot, found: Any) -> str:
    if found is ABSENT or found is None:
        state = "absent" if found is ABSENT else "null"
        raise InvalidArgument(f"{slot} is {state}, and stands in a text", hint='name what stands in for it: ${input.x ?? "…"}')
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _spelled(part: Part) -> str:
    if isinstance(part, Each | Reference):
        return "[*]" if isinstance(part, Each) else f"[{part}]"
    named = isinstance(part, str) and NAME.fullmatch(part)
    return f".{part}" if named else f"[{json.dumps(part, ensure_ascii=False)}]"
