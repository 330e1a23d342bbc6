"""One file over HTTP into one file on disk: in ranges side by side, going on after a reset, a stall or a kill from what is there.

The hash follows the bytes on disk while the rest is still to come, so a file is verified soon after its last byte.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import Unavailable
from aima_lib.infra.blobs import need_room
from aima_lib.infra.egress import Again, Rest
from aima_lib.infra.line import Place
from aima_lib.infra.places import shown
from aima_lib.infra.ranges import Ranges
from aima_lib.infra.throttle import Throttle
from aima_lib.infra.web import Challenged, Web

if TYPE_CHECKING:
    from aima_lib.infra.egress import Response

RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
NOTHING = re.compile(r"bytes \*/(\d+)")
BATCH = 2 << 20
SLICE, SLICE_SECONDS = 16 << 20, 0.25
SLOWEST = 1024  # bytes a second: what drips more slowly than this for as long as a stall may last is one


class Interrupted(Unavailable):
    """The network gave up; what arrived is kept, and the next pull goes on from there."""


class Mismatch(Unavailable):
    """The bytes are not those that were promised; nothing of them is kept."""


class Changed(Exception):
    """The source serves something else than before, or serves no ranges: all begins anew."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a file is fetched, and how often and fast it is tried again: `attempts` failures in a row without a byte end a download."""

    attempts: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20
    lanes: int = 4
    segment: int = 32 << 20  # at least; of large files more, up to `longest_segment`
    longest_segment: int = 256 << 20
    stall_seconds: float = 30


class Flow:
    """How fast a response comes."""

    def __init__(self, url: str, stall_seconds: float) -> None:
        self._url, self._stall = url, stall_seconds
        self._since, self._got = time.monotonic(), 0

    def check(self, count: int) -> None:
        """So many bytes came. Raises Again when it drips for as long as a stall may last."""
        self._got += count
        if (waited := time.monotonic() - self._since) > self._stall:
            if self._got < SLOWEST * waited:
                raise Again(f"{shown(self._url)} sends {self._got} bytes in {waited:.0f} s", hint="name another mirror")
            self._since, self._got = time.monotonic(), 0

    def pause(self, seconds: float) -> None:
        """So long nothing was asked of it."""
        self._since += seconds


@dataclass(slots=True)
class Download:
    """A download under way. `resumed` hears of the bytes that were there, `step` of those gained or (negative) lost since.

    `renew` makes new headers when the server asks who this is: tokens of registries do not last as long as large files.
    """

    web: Web
    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    pace: Pace = field(default_factory=Pace)
    step: Callable[[int], None] = lambda _: None
    resumed: Callable[[int], None] = lambda _: None
    renew: Callable[[], Awaitable[Mapping[str, str]]] | None = field(default=None, repr=False)
    throttle: Throttle = field(default_factory=Throttle)
    place: Place = field(default_factory=Place)
    _ranges: Ranges = field(init=False)
    _news: anyio.Event = field(default_factory=anyio.Event)
    _laid: anyio.Event = field(default_factory=anyio.Event)
    _waiting: list[int] = field(default_factory=list)
    _busy: int = 0
    _plain: bool = False  # the server serves no ranges

    async def run(self) -> str:
        """Fetch and verify; returns the sha256.

        Raises:
            Interrupted: the network failed too often in a row.
            Mismatch: size or digest are not as promised.
        """
        asked = urlsplit(self.url)
        self._ranges = Ranges(self.path, self.pace.segment, f"{asked.hostname}:{asked.port}")
        try:
            await to_thread.run_sync(self._ranges.recall, self.sha256 is None)
            self.resumed(self._ranges.have)
            resumed = self._ranges.have > 0
            if self.size is not None and self._ranges.total not in (None, self.size):
                self._lose()
            await self._persist()
            if (wrong := self._wrong()) and resumed:  # the old bytes may be the bad ones: once more, from nothing
                self._lose()
                await self._persist()
                wrong = self._wrong()
            if wrong:
                raise Mismatch(f"{shown(self.url)}: {wrong}", hint="pull again; if it stays so, name another mirror")
            return self._ranges.digest()
        except Mismatch:
            self._lose()
            raise
        finally:
            self._ranges.close()

    async def _persist(self) -> None:
        """All of it, however often the source changes within reason."""
        for left in reversed(range(self.pace.attempts + 1)):
            try:
                await self._fetch()
                return
            except BaseExceptionGroup as group:
                error = first_of(group)
            if not isinstance(error, Changed):
                raise error
            self._lose()
            if not left:
                raise self._interrupted(Again(f"{shown(self.url)} changes while it is read", hint="name another mirror, or try later"))

    async def _fetch(self) -> None:
        """Every segment that is not here, over a few lanes, while the hash follows."""
        self._laid, self._busy = anyio.Event(), 0
        if self._ranges.counts:
            self._spread()
        else:
            self._waiting = [0]
        async with anyio.create_task_group() as group:
            group.start_soon(self._hash_along)
            group.start_soon(self._lane)
            await self._laid.wait()
            for _ in range(min(self.pace.lanes - 1, len(self._waiting))):
                group.start_soon(self._lane)

    @property
    def _piece(self) -> int:
        """Bytes of a segment: a few for each lane, as far as the size is known before it is asked for."""
        share = (self.size or 0) // (4 * self.pace.lanes)
        return max(self.pace.segment, min(share, self.pace.longest_segment))

    def _spread(self) -> None:
        self._waiting = [number for number in range(len(self._ranges.counts)) if not self._ranges.is_done(number)]
        self._laid.set()

    async def _lane(self) -> None:
        while self._waiting:
            number = self._waiting.pop(0)
            self._busy += 1
            try:
                if not await self._segment(number):
                    return
            finally:
                self._busy -= 1
        self._tell()

    async def _segment(self, number: int) -> bool:
        """One segment; False when it was left to the other lanes, because the server wants fewer of them."""
        failures, furthest, renewed = 0, -1, False
        while not (self._ranges.counts and self._ranges.is_done(number)):
            asked_with = self.headers
            try:
                async with self.throttle.connection(self.place):
                    await self._attempt(number)
                if self._ranges.total is None:
                    self._ranges.close_at(self._ranges.have)
            except Challenged:
                if renewed or self.renew is None:
                    raise
                if asked_with is self.headers:  # no other lane has done it meanwhile
                    self.headers, renewed = {**self.headers, **await self.renew()}, True
            except Again as error:
                renewed = False
                here = self._ranges.counts[number] if self._ranges.counts else 0
                failures = 1 if here > furthest else failures + 1
                furthest = max(furthest, here)  # a server that always begins anew gets no further by getting as far again
                if error.details.get("status") in (429, 503) and self._busy > 1:
                    self._waiting.insert(0, number)
                    return False
                if failures > self.pace.attempts:
                    raise self._interrupted(error) from error
                backoff = self.pace.first_wait_seconds * 2 ** (failures - 1)
                await anyio.sleep(min(error.wait_seconds or backoff, self.pace.longest_wait_seconds))
        return True

    async def _attempt(self, number: int) -> None:
        """One request for what a segment lacks."""
        ranges = self._ranges
        start, end = ranges.bounds(number) if ranges.counts else (0, None)
        have = ranges.counts[number] if ranges.counts else 0
        if self._plain and have:
            raise Changed
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if asked := self._range(start, have, end):
            headers["Range"] = asked
            if (have or number) and ranges.tag.startswith('"'):
                headers["If-Range"] = ranges.tag
        async with self.web.stream(self.url, headers) as response:
            if response.status_code == 416:
                await self._beyond(response, start + have)
                return
            await self._align(response, start + have, bool(asked))
            start, end = ranges.bounds(number)
            await self._receive(response, number, None if end is None else end - start)

    def _range(self, start: int, have: int, end: int | None) -> str | None:
        """What to ask for; None for the whole file."""
        counts = self._ranges.counts
        if self._plain or (not counts and self.size is not None and self.size <= self.pace.segment):
            return None
        if not counts:
            return f"bytes=0-{self._piece - 1}"
        if len(counts) == 1:
            return f"bytes={have}-" if have else None
        return f"bytes={start + have}-{(end or 0) - 1}"

    async def _align(self, response: Response, start: int, asked: bool) -> None:
        """See that this response goes on where the file ends; the first one says how large it is. Raises Changed."""
        tag = response.headers.get("etag") or response.headers.get("last-modified") or ""
        if response.status_code == 206:
            found = RANGE.fullmatch(response.headers.get("content-range", ""))
            total = int(found[3]) if found and found[3] != "*" else None
            if not self._ranges.counts and found and found[1] == "0" and total is not None:
                await self._lay(tag, total, whole=False)
            elif found is None or int(found[1]) != start or self._differs(tag) or total not in (None, self._ranges.total):
                self._plain = self._plain or not self._ranges.counts  # ranges of its own kind are worse than none
                raise Changed
            return
        self._plain = self._plain or (asked and not self._differs(tag))
        if start or (self._ranges.counts and (len(self._ranges.counts) > 1 or self._differs(tag))):
            raise Changed
        length = response.headers.get("content-length", "")
        if not self._ranges.counts:
            await self._lay(tag, int(length) if length.isdigit() else None, whole=True)

    def _differs(self, tag: str) -> bool:
        self._ranges.tag = self._ranges.tag or tag
        return bool(tag and tag != self._ranges.tag)

    async def _lay(self, tag: str, total: int | None, *, whole: bool) -> None:
        """Now that the size is known: is there room, and how is it divided?"""
        if self.size is not None and total is not None and total != self.size:
            raise Mismatch(f"{shown(self.url)} has {total} bytes, {self.size} were promised", hint="name another mirror, or wait")
        size = total if total is not None else self.size
        if size is not None and self.size is None:
            need_room(self.path.parent, size)
        await to_thread.run_sync(lambda: self._ranges.lay(tag, size, whole=whole, segment=self._piece))
        if whole or size is None:
            self._waiting = []
            self._laid.set()
        else:
            self._spread()
            self._waiting = [number for number in self._waiting if number]  # the first is under way

    async def _beyond(self, response: Response, start: int) -> None:
        """The server has nothing from there on: the file is empty, or it is shorter than it was."""
        found = NOTHING.fullmatch(response.headers.get("content-range", ""))
        if found and int(found[1]) == start and self.size in (None, start):
            if not self._ranges.counts:
                await self._lay("", start, whole=True)
            self._ranges.close_at(start)
            return
        if self._ranges.have or not self._plain:
            self._plain = not self._ranges.have
            raise Changed
        raise Again(f"{shown(self.url)} does not serve the range it was asked for (HTTP 416)", hint="name another mirror")

    async def _receive(self, response: Response, number: int, limit: int | None) -> None:
        """The body into the segment, which may hold `limit` bytes in all; what a server sends beyond a range that was asked for is left."""
        batch: list[bytes] = []
        size, ranges, flow = 0, self._ranges, Flow(self.url, self.pace.stall_seconds)
        try:
            async for chunk in self.web.body(response):
                coming = chunk.left if isinstance(chunk, Rest) else len(chunk)
                room = coming if limit is None else limit - ranges.counts[number] - size
                if coming > room and ranges.bounds(number)[1] == ranges.total:
                    batch.clear()
                    raise Mismatch(f"{shown(self.url)} sends more than its {limit} bytes", hint="name another mirror")
                if isinstance(chunk, Rest) or size >= BATCH:
                    full, batch, size = batch, [], 0
                    await to_thread.run_sync(ranges.write, number, full)
                    self._gained(sum(map(len, full)))
                if isinstance(chunk, Rest):
                    await self._take(chunk, number, min(room, coming), flow)
                    break
                batch.append(chunk[:room])
                size += len(batch[-1])
                flow.check(len(batch[-1]))
                flow.pause(await self.throttle.let_pass(len(batch[-1]), self.place))
        finally:
            if batch:  # what came before a reset counts, else a link that breaks every 100 KB never gets further
                self._gained(ranges.write(number, batch))
        self._refuse_short(number)

    async def _take(self, rest: Rest, number: int, left: int, flow: Flow) -> None:
        """So much of the rest into the segment, by a thread, which is left often enough to be told to stop."""
        while left:
            most, here = self.throttle.at_once(min(left, SLICE)), self._ranges.counts[number]
            until = time.monotonic() + SLICE_SECONDS
            try:
                await to_thread.run_sync(
                    self._ranges.take, number, lambda buffer, until=until: _within(rest, buffer, until), most, limiter=self.throttle.threads
                )
            finally:
                count = self._ranges.counts[number] - here
                self._gained(count)
            left -= count
            flow.check(count)
            flow.pause(await self.throttle.let_pass(count, self.place))

    def _refuse_short(self, number: int) -> None:
        """Raise Again when a response ended before its segment did."""
        start, end = self._ranges.bounds(number)
        here = self._ranges.counts[number]
        if end is not None and here < end - start:
            raise Again(f"{shown(self.url)} ended after {start + here} of {self._ranges.total} bytes")

    async def _hash_along(self) -> None:
        while True:
            news = self._news
            if self._laid.is_set() and self._ranges.counts and self._ranges.prefix() > self._ranges.hashed:
                await to_thread.run_sync(self._ranges.hash_on, from_thread.check_cancelled)
            elif self._ranges.is_whole:
                return
            else:
                await news.wait()

    def _gained(self, count: int) -> None:
        self.step(count)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    def _lose(self) -> None:
        self.step(-self._ranges.forget())

    def _wrong(self) -> str | None:
        if self.size is not None and self._ranges.have != self.size:
            return f"{self._ranges.have} bytes came, {self.size} were promised"
        if self.sha256 is not None and self._ranges.digest() != self.sha256:
            return f"the bytes hash to sha256 {self._ranges.digest()}, promised was {self.sha256}"
        return None

    def _interrupted(self, error: Again) -> Interrupted:
        have, whole = self._ranges.have, self.size or self._ranges.total or "unknown"
        kept = f"{have} of {whole} bytes of it are kept, the next pull goes on from there"
        return Interrupted(f"{error}; {kept}", hint=error.hint, next=error.next, details={**error.details, "kept_bytes": have})


def _within(rest: Rest, buffer: memoryview, until: float) -> int:
    seconds = until - time.monotonic()
    return rest.fill(buffer, seconds) if seconds > 0 else 0


def first_of(error: BaseException) -> BaseException:
    """Of several failures at once, the first that is no cancellation speaks for all."""
    while isinstance(error, BaseExceptionGroup):
        real = [each for each in error.exceptions if isinstance(each, Exception | BaseExceptionGroup)]
        error = (real or error.exceptions)[0]
    return error
