"""What a caller may use up within a rolling window: requests, tokens, deletions, bytes fetched, and time of engines.

A key's own limits come before `[budgets]` of config.toml, which hold everybody who has none, and the owner is held to nothing. What was
used is counted by this process's clock, which nobody sets, and written down behind the requests, at most a second late: a restart
gives nobody a fresh start, and a clock that was set back frees nobody and locks nobody out for longer than a window.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from aima_lib.door import OWNER, Caller
from aima_lib.errors import PermissionDenied
from aima_lib.infra.store import Store
from aima_lib.registry import Unit
from aima_lib.services.ledger import Ledger
from aima_lib.services.limits import DELETIONS, KINDS, REQUESTS, Kind, kinds_of, refusal, shown
from aima_lib.services.window import Window

WRITE_SECONDS = 1.0
REQUESTS_SECONDS = 60.0  # their window is not worth more writes than that
_within: ContextVar[bool] = ContextVar("within a unit", default=False)


Limits = Mapping[str, float | None]
Charge = Callable[[Kind, float], None]
Spend = Callable[[float], None]
Hold = Callable[[float], AbstractContextManager[Spend]]


class Account:
    """A Charge that knows whose it is."""

    def __init__(self, allowance: Allowance, caller: Caller) -> None:
        self.allowance, self.caller = allowance, caller

    def __call__(self, kind: Kind, amount: float) -> None:
        self.allowance.charge(self.caller, kind, amount)


def caller_of(charge: Charge) -> str:
    """Who pays, so that callers can take turns; everybody whose charge does not say counts as one."""
    return charge.caller.name if isinstance(charge, Account) else ""


@contextmanager
def unlimited(_: float) -> Iterator[Spend]:
    """A Hold for nobody in particular."""
    yield lambda _: None


class Allowance:
    """What every caller has used, and what that leaves. `totals` counts by caller and limit since the host started, the owner's too."""

    def __init__(self, budgets: Limits, store: Store) -> None:
        self._budgets, self._ledger = budgets, Ledger(store)
        self._windows = self._ledger.load()
        self._own: dict[str, Limits] = {}
        self._held: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when it writes, on our clock
        self._bounds: dict[str, dict[str, float | None]] = {}  # by caller
        self._kinds: dict[str, tuple[Kind, ...]] = {}
        self.totals: defaultdict[tuple[str, str], float] = defaultdict(int)

    # Limits

    def grant(self, name: str, limits: Limits | None) -> None:
        """Give a caller limits of its own."""
        self._own[name] = limits or {}
        self._bounds.pop(name, None)

    def refuse_more(self, by: Caller, limits: Limits | None) -> None:
        """Raises PermissionDenied unless a key with these limits may use up no more than whoever makes it."""
        own = self.limits(by.name) or {}
        given = limits or {}
        for name, most in own.items():
            asked = self._budgets[name] if given.get(name) is None else given[name]
            if most is not None and (asked is None or asked > most):
                message = f"{by.name} may not make a key with more {name} than its own {most:g}"
                raise PermissionDenied(message, hint=f"give limits.{name}: {most:g} or less", details={"limits": own})

    def limits(self, caller: str) -> dict[str, float | None] | None:
        """What a caller may use up, by each limit; None is no limit, and for the owner there is none at all."""
        if caller == OWNER.name:
            return None
        own = self._own.get(caller, {})
        return {name: self._budgets[name] if own.get(name) is None else own[name] for name in KINDS}

    def usage(self, caller: str) -> dict[str, float] | None:
        """What a caller has used of each limit; the owner's is not counted."""
        if caller == OWNER.name:
            return None
        at, kept = time.monotonic(), self._windows
        return {name: shown(kind, kept[caller, name].used(at) if (caller, name) in kept else 0) for name, kind in KINDS.items()}

    # Using up

    def admit(self, caller: Caller, unit: Unit) -> None:
        """Let a call through, and count it; what a unit calls in turn is no request of its own. A deletion is counted by `delete`.

        Raises:
            ResourceExhausted: the caller has used up its requests, deletions, tokens or device seconds.
        """
        nested, kinds = _within.get(), self._kinds.get(unit.name)
        if kinds is None:
            kinds = self._kinds[unit.name] = kinds_of(unit)
        bounds = self._bounds.get(caller.name)
        if bounds is None:
            bounds = self._bounds[caller.name] = {name: most for name, most in (self.limits(caller.name) or {}).items() if most is not None}
        if bounds:
            for kind in kinds:
                if not (nested and kind is REQUESTS):
                    self._need(caller, kind, kind.least)
        if REQUESTS in kinds and not nested:
            self.charge(caller, REQUESTS, 1)

    def delete(self, caller: Caller, unit: Unit) -> None:
        """Count a call that may pass now, if it deletes. Raises ResourceExhausted: others came first, and none is left."""
        if DELETIONS in self._kinds.get(unit.name, ()):
            self._need(caller, DELETIONS, DELETIONS.least)
            self.charge(caller, DELETIONS, 1)

    @contextmanager
    def nested(self) -> Iterator[None]:
        """What is called within the block belongs to a request that was counted."""
        mark = _within.set(True)
        try:
            yield
        finally:
            _within.reset(mark)

    def account(self, caller: Caller) -> Account:
        """What counts as used by this caller."""
        return Account(self, caller)

    def charge(self, caller: Caller, kind: Kind, amount: float) -> None:
        """Count what was used."""
        place, at = (caller.name, kind.limit), time.monotonic()
        self.totals[place] += amount
        if caller.name == OWNER.name or amount <= 0:
            return
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window(kind.seconds)
        window.add(amount, at)
        self._ledger.changed.add(place)
        seconds = REQUESTS_SECONDS if kind is REQUESTS else WRITE_SECONDS
        if at + seconds < self._due:
            self._write_in(seconds, at)

    @contextmanager
    def holding(self, caller: Caller, kind: Kind, amount: float) -> Iterator[Spend]:
        """Keep `amount` free for what the block uses up bit by bit, by the function it is given; what is left over is given back.

        Raises:
            ResourceExhausted: so much is not left; or, of the function, more was used than was asked for, and than there is.
        """
        if amount:
            self._need(caller, kind, amount)
        place, left = (caller.name, kind.limit), amount
        self._held[place] += amount

        def spend(some: float) -> None:
            nonlocal left
            covered = min(left, some)
            left -= covered
            self._held[place] -= covered
            self.charge(caller, kind, some)
            if covered < some:
                self._need(caller, kind, 0)

        try:
            yield spend
        finally:
            self._held[place] -= left
            if not self._held[place]:
                del self._held[place]

    def close(self) -> None:
        """Write down what has not been yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._write()

    def _write_in(self, seconds: float, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = asyncio.get_running_loop().call_later(seconds, self._write), at + seconds

    def _write(self) -> None:
        self._timer, self._due = None, math.inf
        self._ledger.write(self._windows)

    def _need(self, caller: Caller, kind: Kind, amount: float) -> None:
        own = self._own.get(caller.name)
        limit = own.get(kind.limit) if own else None
        if limit is None:
            limit = self._budgets[kind.limit]
        if limit is None or caller.name == OWNER.name:
            return
        place, at, most = (caller.name, kind.limit), time.monotonic(), limit * kind.size
        window = self._windows.get(place) or Window(kind.seconds)
        held = self._held.get(place, 0)
        if window.used(at) + held + amount > most:
            wait = None if amount > most else window.wait(min(amount + held, most), most, at)
            raise refusal(caller, kind, limit, window.used(at) + held, amount, wait)
