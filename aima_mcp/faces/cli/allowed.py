"""What the help shows to whoever comes with a key of AIMA_KEY: the units that key may call, and no others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from aima_lib.registry import SCHEMAS

SECONDS = 1.0
SCOPE = re.compile(r'"scope": "([a-z]+)"')


def allowed(domain: str, actions: Iterable[str], home: str | None) -> list[str]:
    """Those of a domain's actions that the key may call: all of them for the owner, and when no host says who we are."""
    scopes = _scopes(home) if "AIMA_KEY" in os.environ else None
    if scopes is None:
        return list(actions)
    return [action for action in actions if _may(scopes, SCHEMAS / domain / f"{action}.json")]


def _may(scopes: frozenset[str], path: Path) -> bool:
    found = SCOPE.search(path.read_text(encoding="utf-8"))
    return found is not None and (found[1] in scopes or ("admin" in scopes and found[1] != "exec"))


@cache
def _scopes(home: str | None) -> frozenset[str] | None:
    from aima_lib.attached import Attached
    from aima_lib.errors import AimaError
    from aima_lib.infra.home import Home
    from aima_lib.infra.stream import blocking, driven

    place = Home(home)
    url, key = place.remote()
    if url is None and (host := place.host()) is not None:
        url = host.url
    if url is None or key is None:
        return None
    try:
        attached = Attached(url, key, connect=blocking(SECONDS))
        try:
            return driven(attached.caller()).scopes
        finally:
            driven(attached.close())
    except AimaError:
        return None
