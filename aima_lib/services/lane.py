"""The requests of one service: a seat at one of its endpoints for each, and a bounded, fair queue for those that find none free."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from aima_lib.errors import AimaError, ResourceExhausted, Unavailable
from aima_lib.services.affinity import Affinity
from aima_lib.services.breaker import Breaker
from aima_lib.services.fair_queue import FairQueue
from aima_lib.services.routes import Endpoint

# How many tokens more a place may have before it than the emptiest one, and still be asked for what its cache holds.
LEANING_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """[inference] of config.toml: how many may wait, of them of one caller, and for how long."""

    queue: int
    queue_of_caller: int
    seconds: float


class Place:
    """An endpoint as the lane sees it: who sits there, and what is held against it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.breaker = endpoint, Breaker()
        self.seats: set[Seat] = set()
        self.tokens = 0

    @property
    def start(self) -> tuple[str, str]:
        """Which process this is: the same id may come back as another."""
        return self.endpoint.instance["id"], self.endpoint.instance["started_at"]


class Seat:
    """A request's place, until it leaves. `scope` is set while nothing of an answer has come: whoever cancels it lets it try elsewhere."""

    __slots__ = ("endpoint", "judged", "place", "scope", "since", "tokens")

    def __init__(self, place: Place, tokens: int, since: float) -> None:
        self.place, self.endpoint, self.tokens, self.since = place, place.endpoint, tokens, since
        self.scope: anyio.CancelScope | None = None
        self.judged = False


@dataclass(eq=False)
class _Ticket:
    """A request that waits."""

    caller: str
    tokens: int
    marks: Sequence[int]
    but: Collection[tuple[str, str]]
    seat: asyncio.Future[Seat] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Lane:
    """Seats and queue of one service. Every request that is under way or waits is counted by `open`."""

    def __init__(self, name: str, limits: Limits, rank: Callable[[str], int] = lambda _: 0) -> None:
        """rank: of a caller; the higher goes first, as FairQueue says."""
        self.name, self._limits, self._rank = name, limits, rank
        self._places: dict[str, Place] = {}
        self._queue: FairQueue[_Ticket] = FairQueue()
        self._affinity = Affinity()
        self._timer: asyncio.TimerHandle | None = None
        self._seats: set[Seat] = set()
        self._left: asyncio.Future[None] | None = None  # for those who wait until somebody leaves
        self.last_used = time.monotonic()
        self.expected = 0  # requests that wait for the service itself

    # What it is like

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def seated(self) -> int:
        """How many requests are being answered."""
        return len(self._seats)

    @property
    def open(self) -> int:
        """How many requests wait or are being answered."""
        return len(self._queue) + len(self._seats)

    @property
    def is_wide(self) -> bool:
        """Whether there is a choice."""
        return len(self._places) > 1

    async def emptied(self, seconds: float) -> bool:
        """Wait until nobody is being answered; whether that came within so many seconds."""
        with anyio.move_on_after(seconds):
            while self._seats:
                await self._leaving()
        return not self._seats

    async def left_by(self, instance_id: str, seconds: float) -> None:
        """Send nobody to an endpoint any more, and wait until nobody is being answered there, so long at most."""
        with anyio.move_on_after(seconds):
            while any(seat.endpoint.instance["id"] == instance_id for seat in self._seats):
                await self._leaving()

    async def _leaving(self) -> None:
        if self._left is None:
            self._left = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._left)

    def give_up(self, error: AimaError) -> None:
        """Turn away everybody who waits."""
        for ticket in self._queue.clear():
            if not ticket.seat.done():
                ticket.seat.set_exception(error)

    def state(self) -> dict[str, Any]:
        """The queue, for who is turned away."""
        slots = sum(place.endpoint.slots for place in self._places.values())
        waiting = self.waiting + self.expected
        return {"service": self.name, "queue_depth": waiting, "under_way": self.seated, "slots": slots, "queue_limit": self._limits.queue}

    # Coming and going

    def expect(self, caller: str) -> None:
        """Count a request that waits for the service to be there; whoever calls takes it off. Raises as `enter`."""
        self._refuse(caller)
        self.last_used = time.monotonic()
        self.expected += 1

    async def enter(
        self, caller: str, tokens: int, marks: Sequence[int] = (), but: Collection[tuple[str, str]] = (), *, again: bool = False
    ) -> Seat:
        """A seat, as soon as one is free and it is this caller's turn. At one of `but` only where no other is free.

        again: its turn had come before: it waits in front.

        Raises:
            ResourceExhausted: too many wait already, of this caller or in all.
            Unavailable: no seat came free in time.
            AimaError: the service was given up meanwhile.
        """
        at = self.last_used = time.monotonic()
        if not self._queue and (place := self._choose(marks, but, at)):
            return self._sit(place, tokens, marks, at)
        if not again:
            self._refuse(caller)
        ticket = _Ticket(caller, tokens, marks, but)
        self._queue.put(caller, ticket, rank=self._rank(caller), first=again)
        self._move()
        seat: Seat | None = None
        try:
            with anyio.fail_after(self._limits.seconds):
                seat = await ticket.seat
            return seat
        except TimeoutError as error:
            raise Unavailable(
                f"no engine of {self.name} came free within {self._limits.seconds:g} s", hint="ask again later", details=self.state()
            ) from error
        finally:
            if seat is None:
                self._queue.remove(caller, ticket)
                if ticket.seat.done() and not ticket.seat.cancelled() and ticket.seat.exception() is None:
                    self.leave(ticket.seat.result())  # it was given a seat in the moment it left

    def leave(self, seat: Seat) -> None:
        """Give the seat to the next."""
        self._seats.discard(seat)
        seat.place.seats.discard(seat)
        seat.place.tokens -= seat.tokens
        self.last_used = time.monotonic()
        if not seat.judged:
            seat.place.breaker.spared(self.last_used)
        if self._left is not None:
            self._left.set_result(None)
            self._left = None
        if self._queue:
            self._move()

    def answered(self, seat: Seat) -> None:
        """It answers."""
        seat.scope, seat.judged = None, True
        seat.place.breaker.succeeded()

    def failed(self, seat: Seat, *, unreachable: bool) -> None:
        """It did not."""
        seat.judged = True
        seat.place.breaker.failed(time.monotonic(), unreachable=unreachable)

    # What there is

    def update(self, endpoints: Sequence[Endpoint], why_not: Callable[[], AimaError | None]) -> None:
        """The endpoints that are ready now. `why_not` says why nobody shall wait for one, if nobody shall."""
        fresh: dict[str, Place] = {}
        for endpoint in endpoints:
            id = endpoint.instance["id"]
            old = self._places.get(id)
            if old is None or old.start != (id, endpoint.instance["started_at"]):
                old = Place(endpoint)
            old.endpoint = endpoint
            fresh[id] = old
        self._places = fresh
        self._free_hung()
        if not fresh and self._queue and (error := why_not()) is not None:
            self.give_up(error)
        self._move()

    def _free_hung(self) -> None:
        """Let those who wait at an endpoint that stopped answering its probes try another, where there is one."""
        healthy = [place for place in self._places.values() if place.endpoint.instance["health"] != "unhealthy"]
        for place in self._places.values():
            if healthy and place not in healthy:
                for seat in place.seats:
                    if seat.scope is not None:
                        seat.scope.cancel()

    # Who is next

    def _refuse(self, caller: str) -> None:
        mine, all = self._queue.of(caller), len(self._queue) + self.expected
        if mine < self._limits.queue_of_caller and all < self._limits.queue:
            return
        seconds = max(1, math.ceil(all / max(1, self.state()["slots"]) / 4))
        details = self.state() | {"queued_of_caller": mine, "queue_limit_of_caller": self._limits.queue_of_caller}
        if mine >= self._limits.queue_of_caller:
            message = f"{mine} requests of {caller} wait for {self.name} already"
            raise ResourceExhausted(message, hint=f"ask again in {seconds} s", details=details | {"retry_after_seconds": seconds})
        message = f"{all} requests wait for {self.name} already"
        raise Unavailable(message, hint=f"ask again in {seconds} s", details=details | {"retry_after_seconds": seconds})

    def _move(self) -> None:
        """Seat whoever can be."""
        while self._queue:
            ticket = self._queue.head()
            if ticket.seat.done():
                self._queue.pop()
                continue
            at = time.monotonic()
            place = self._choose(ticket.marks, ticket.but, at)
            if place is None:
                self._look_again()
                return
            self._queue.pop()
            ticket.seat.set_result(self._sit(place, ticket.tokens, ticket.marks, at))

    def _sit(self, place: Place, tokens: int, marks: Sequence[int], at: float) -> Seat:
        seat = Seat(place, tokens, at)
        place.seats.add(seat)
        self._seats.add(seat)
        place.tokens += tokens
        place.breaker.begun()
        if marks:
            self._affinity.learn(marks, place.endpoint.instance["id"])
        return seat

    def _choose(self, marks: Sequence[int], but: Collection[tuple[str, str]], at: float) -> Place | None:
        """The endpoint with the fewest tokens before it, but one that has read this prompt's beginning if it is not far behind."""
        if len(self._places) == 1:
            (place,) = self._places.values()
            return place if len(place.seats) < place.endpoint.slots and not place.breaker.wait(at) else None
        free = [place for place in self._places.values() if len(place.seats) < place.endpoint.slots and not place.breaker.wait(at)]
        if not free:
            return None
        free = [place for place in free if place.endpoint.instance["health"] != "unhealthy"] or free
        free = [place for place in free if place.start not in but] or free
        least = min(free, key=lambda place: (place.tokens, len(place.seats)))
        wanted = self._affinity.best(marks) if marks else None
        known = next((place for place in free if place.endpoint.instance["id"] == wanted), None)
        return known if known is not None and known.tokens <= least.tokens + LEANING_TOKENS else least

    def _look_again(self) -> None:
        """When the next breaker lets one try."""
        at = time.monotonic()
        waits = [place.breaker.wait(at) for place in self._places.values() if len(place.seats) < place.endpoint.slots]
        soonest = min((wait for wait in waits if 0 < wait < math.inf), default=None)
        if soonest is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(soonest, self._again)

    def _again(self) -> None:
        self._timer = None
        self._move()
