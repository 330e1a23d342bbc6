"""Which tools a connection lists. A profile is a filter and no permission: what it leaves out can still be called.

AIMA's own are data, schemas/profiles.json; config.toml may add more under [mcp.profiles].
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from aima_lib.errors import InvalidArgument, NotFound
from aima_lib.names import did_you_mean, nearest
from aima_lib.registry import SCHEMAS, Registry

DEFAULT = "agent"
# From these every other unit can be found, understood and called.
ALWAYS = ("unit.search", "unit.describe", "unit.call")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
Own = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Profile:
    """A list of tools.

    outputs: whether they say what they answer with. That is three quarters of a list's length, so only programs get it; a model sees
        an output when it comes, or asks unit.describe.
    """

    name: str
    units: frozenset[str]
    outputs: bool = False


def profiles(registry: Registry, own: Own) -> dict[str, Profile]:
    """Every profile by name: AIMA's, then the configured ones.

    Raises:
        InvalidArgument: a configured one has an unfit name, or names no unit that exists; the nearest are named.
    """
    names = [unit.name for unit in registry.of("command", "query")]
    known = json.loads((SCHEMAS / "profiles.json").read_text(encoding="utf-8"))
    found = {name: Profile(name, _members(name, spec["units"], names), spec["outputs"]) for name, spec in known.items()}
    for name, patterns in own.items():
        if name in known:
            raise InvalidArgument(f"mcp.profiles.{name}: {name} is one of AIMA's own profiles", hint="give yours another name")
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"mcp.profiles.{name}: no fit name", hint="it is part of a URL: a-z, 0-9, - and _, at most 32")
        found[name] = Profile(name, _members(name, patterns, names))
    return found


def choose(found: Mapping[str, Profile], name: str) -> Profile:
    """The profile called `name`. Raises NotFound naming those that there are."""
    if profile := found.get(name):
        return profile
    hint = did_you_mean(name, found) or f"there are: {', '.join(found)}"
    raise NotFound(f"no profile called {name!r}", hint=hint, details={"nearest": nearest(name, found)})


def _members(profile: str, patterns: Iterable[str], names: Sequence[str]) -> frozenset[str]:
    members = set(ALWAYS)
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            choices = [*names, *sorted({f"{name.partition('.')[0]}.*" for name in names})]
            hint = did_you_mean(pattern, choices) or "write units such as model.list, or patterns such as model.*"
            raise InvalidArgument(f"mcp.profiles.{profile}: no unit is called {pattern!r}", hint=hint)
        members.update(matching)
    return frozenset(members)
