"""Text that others wrote, in logs, model files and repositories, made fit for a model to read: what a person would not see is taken out.

Hidden text is how a log line or a model's metadata gives orders to an agent: characters that turn the direction of writing, have no
width, or spell ASCII in the tag block. Line breaks and tabs stay; so do the joiners that scripts and emoji need, between such characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aima_lib.registry import Marks
from aima_mcp.faces.mcp.fit import shorter

OPEN, CLOSE = "⟦untrusted⟧", "⟦/untrusted⟧"

_TERMINAL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f"  # no width
    "\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"  # tags, and the variation selectors beside them
    "]+"
)
_JOINERS = re.compile(r"(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])|(?<=[\u200c\u200d])[\u200c\u200d]+")
_VARIATIONS = re.compile(r"(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]+")
# What of all this a text holds at most: few do, and those need no more than this one look.
_ANY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f-\uffff\U000e0000-\U000e0fff]")


def clean(value: Any) -> Any:
    """A JSON value whose texts, names of members too, hold nothing hidden."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def capped(marks: Marks | None, value: Any) -> Any:
    """A value whose texts from outside have at most the characters their marks allow; those that had more say how many."""
    if marks is None or value is None:
        return value
    if isinstance(marks, int):
        return shorter(value, marks)
    if isinstance(value, list):
        return [capped(marks.get("[]"), item) for item in value]
    return {key: capped(marks.get(key), item) for key, item in value.items()} if isinstance(value, Mapping) else value


def present(marks: Marks | None, value: Any, name: str = "") -> Iterator[str]:
    """The names of the fields that hold text from outside, where they hold any."""
    if marks is None or value in (None, "", [], {}):
        return
    if isinstance(marks, int):
        yield name
    elif isinstance(value, list):
        for item in value:
            yield from present(marks.get("[]"), item, name)
    elif isinstance(value, Mapping):
        for key, below in marks.items():
            yield from present(below, value.get(key), key)


def is_outside(marks: Marks | None, key: str) -> bool:
    """Whether a field of an output is nothing but text from outside, or a list of such."""
    found = marks.get(key) if isinstance(marks, dict) else None
    return isinstance(found, int) or (isinstance(found, dict) and isinstance(found.get("[]"), int))


def fenced(text: str) -> str:
    """A text from outside between marks that it cannot hold itself, so that a reader can tell where it ends."""
    return f"{OPEN}{text.replace('⟦', '[').replace('⟧', ']')}{CLOSE}"


def clean_text(text: str) -> str:
    """A text with nothing hidden in it."""
    if _ANY.search(text) is None:
        return text
    text = _HIDDEN.sub("", _TERMINAL.sub("", text))
    return _VARIATIONS.sub("", _JOINERS.sub("", text))
