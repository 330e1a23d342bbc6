"""How much a call asks for before it is done: nothing, its plan, somebody else's approval, or it is not done at all."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from aima_lib.door import OWNER, Caller
from aima_lib.errors import InvalidArgument
from aima_lib.names import did_you_mean
from aima_lib.registry import Registry, Unit

LEVELS = ("auto", "plan", "approve", "deny")


class Policy:
    """The strictest rule wins: the unit's own, that of its scope, those of every pattern its name fits.

    rules: config.toml's [policy].

    Raises:
        InvalidArgument: a pattern fits no unit.
    """

    def __init__(self, rules: Mapping[str, Any], registry: Registry) -> None:
        self._scopes: Mapping[str, str] = rules["scopes"]
        self._units: Mapping[str, str] = rules["units"]
        self._levels: dict[tuple[str, bool], str] = {}
        names = [unit.name for unit in registry.of("command", "query")]
        for pattern in self._units:
            if not any(fnmatchcase(name, pattern) for name in names):
                message = f"config.toml: [policy] units names {pattern!r}, which no unit fits"
                raise InvalidArgument(message, hint=did_you_mean(pattern, names))

    def level(self, unit: Unit, caller: Caller) -> str:
        """auto, plan, approve or deny. A query changes nothing: it can only be denied.

        Nobody stands above the owner, so what others need an approval for, the owner needs a plan for.
        """
        place = unit.name, caller == OWNER
        if place not in self._levels:
            self._levels[place] = self._level(unit, is_owner=place[1])
        return self._levels[place]

    def _level(self, unit: Unit, *, is_owner: bool) -> str:
        fitting = [level for pattern, level in self._units.items() if fnmatchcase(unit.name, pattern)]
        level = max([unit.policy, self._scopes.get(unit.definition["scope"], "auto"), *fitting], key=LEVELS.index)
        if unit.kind == "query":
            return level if level == "deny" else "auto"
        return "plan" if level == "approve" and is_owner else level
