"""Names people and models can read: slugs, and the nearest of those that exist."""

from __future__ import annotations

import difflib
import random
import re
import secrets
from collections.abc import Collection, Iterable

LONGEST = 64


def slug(text: str, longest: int = LONGEST) -> str:
    """`text` as an id: lower case letters, digits, dots, underscores and dashes, at most `longest` characters."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")[:longest].strip("-._") or "unnamed"


def instance_id(engine: str, whose: str) -> str:
    """The id of the process that `engine` runs for a service or a model: long enough that no two of them share one."""
    return slug(f"{engine}-{whose}", 2 * LONGEST)


def replica_id(engine: str, service_id: str, number: int) -> str:
    """The id of a service's process: the first has the plain one, and no engine is called r2."""
    plain = instance_id(engine, service_id)
    return plain if number == 1 else f"r{number}.{plain}"


def fresh(stem: str, taken: Collection[str]) -> str:
    """`stem`, or the first of `stem-2`, `stem-3` … that is not taken."""
    if stem not in taken:
        return stem
    return next(name for number in range(2, len(taken) + 3) if (name := f"{stem}-{number}") not in taken)


def tag() -> str:
    """A long random word for ids that are made by the thousand, and need not be hard to guess."""
    return f"{random.getrandbits(64):016x}"


def token(length: int = 6) -> str:
    """A short random word for ids: no vowels, so that it spells nothing."""
    return "".join(secrets.choice("bcdfghjkmnpqrstvwxz23456789") for _ in range(length))


def nearest(word: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` choices that look most like `word`, best first."""
    choices = list(choices)
    found = difflib.get_close_matches(word, choices, n, 0.5)
    inside = [choice for choice in choices if len(word) > 1 and (word in choice or choice in word) and choice not in found]
    return (found + inside)[:n]


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """A hint that names the nearest choices, or nothing when none is near."""
    found = nearest(word, choices)
    return f"did you mean {' or '.join(found)}?" if found else None
