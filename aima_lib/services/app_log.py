"""What an app's containers write, read once or followed: by a cursor, which says of each how far it was read, and a wait that ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio

from aima_lib.errors import AimaError
from aima_lib.infra.clock import parse
from aima_lib.infra.docker import Docker
from aima_lib.infra.store import Document

FOLLOWED, GATHER_SECONDS, LOOK_SECONDS, MOST_BYTES = 32, 0.1, 0.5, 4 << 20
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
SECOND = 10**9
Ids = Callable[[], Awaitable[Mapping[str, str]]]
Place = tuple[int, int]  # behind so many lines of one moment, in nanoseconds since 1970: Podman tells whole seconds alone
START: Place = (0, 0)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """A line, its container, and when it was written: never before the one that stands above it."""

    moment: int
    container: str
    text: str


class Reader:
    """Reads what one container said from the second on in which a place is, and gives what comes after that."""

    def __init__(self, container: str, place: Place = START) -> None:
        self._container, self._place = container, place
        self._moment = self._met = 0

    @property
    def since(self) -> float | None:
        """What Docker is to be asked for."""
        return float(self._place[0] // SECOND) or None

    def read(self, texts: Iterable[str]) -> list[Line]:
        """The new lines of these, which follow on those that were read before."""
        return [line for line in map(self._line, texts) if self._is_new(line)]

    def _line(self, text: str) -> Line:
        self._moment = max(self._moment, _moment_of(text.partition(" ")[0]))
        return Line(self._moment, self._container, text)

    def _is_new(self, line: Line) -> bool:
        moment, count = self._place
        self._met += line.moment == moment
        return line.moment > moment or (line.moment == moment and self._met > count)


def _moment_of(stamp: str) -> int:
    """0 where a line has no time of its own."""
    found = STAMP.match(stamp)
    return int(parse(found[1] + found[3]).timestamp()) * SECOND + int((found[2] or "0").ljust(9, "0")) if found else 0


def cursor_of(text: str) -> dict[str, Place]:
    """How far each container was read, by a text that fits the pattern of app.logs."""
    parts = (part.partition("=") for part in text.split(","))
    split = ((name, place.partition(".")) for name, _, place in parts)
    return {name: (int(moment), int(count or 0)) for name, (moment, _, count) in split}


def begun(record: Document, cursor: Mapping[str, Place], since: float) -> dict[str, Place]:
    """Where each container of the app is read on: behind a cursor, and from a time on (seconds since 1970)."""
    return {name: max(cursor.get(name, START), (int(since * SECOND), 0)) for name in record["template"]["containers"]}


def told(cursor: Mapping[str, Place]) -> str:
    """The text of a cursor."""
    return ",".join(f"{name}={moment}.{count}" for name, (moment, count) in cursor.items())


class AppLog:
    """Reads the logs of an app's containers. `Ids` says which there are now, by their names in the template."""

    def __init__(self, docker: Docker) -> None:
        self._docker, self._followed = docker, anyio.Semaphore(FOLLOWED)

    async def last(self, record: Document, ids: Ids, most: int, since: float | None) -> tuple[Sequence[str], dict[str, Place]]:
        """The last lines of all together, and the cursor behind them."""
        lines = list[Line]()
        cursor = begun(record, {}, since or 0.0)
        for name, id in (await ids()).items():
            found = Reader(name).read(await self._docker.logs(id, most, since))
            lines += found
            if found:
                cursor[name] = await self._behind(name, id, found, most)
        return _shown(record, sorted(lines, key=_moment)[-most:]), cursor

    async def _behind(self, name: str, id: str, found: Sequence[Line], most: int) -> Place:
        """The place behind these lines, the last of a container; of the moment of the last there may be more than were asked for."""
        moment = found[-1].moment
        if len(found) >= most and found[0].moment == moment:
            found = Reader(name, (moment - 1, 0)).read(await self._docker.logs(id, None, float(moment // SECOND)))
        return _moved({name: (moment, 0)}, found)[name]

    async def after(
        self, record: Document, ids: Ids, places: Mapping[str, Place], most: int, seconds: float
    ) -> tuple[Sequence[str], dict[str, Place]]:
        """The next lines after these places, and those behind them. Where there are none yet it waits for some, no longer than so."""
        lines = list[Line]()
        for name, id in (await ids()).items():
            reader = Reader(name, places[name])
            lines += reader.read(await self._docker.logs(id, None, reader.since))
        if not lines:
            await self._wait(ids, places, most, seconds, lines)
        taken = sorted(lines, key=_moment)[:most]
        return _shown(record, taken), _moved(places, taken)

    async def _wait(self, ids: Ids, places: Mapping[str, Place], most: int, seconds: float, lines: list[Line]) -> None:
        """Until one of them writes something, and a moment longer, for what else it writes."""
        news = anyio.Event()
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                for name in places:
                    tasks.start_soon(self._follow, name, ids, places[name], most, lines, news)
                await news.wait()
                await anyio.sleep(GATHER_SECONDS)
                tasks.cancel_scope.cancel()

    async def _follow(self, name: str, ids: Ids, place: Place, most: int, lines: list[Line], news: anyio.Event) -> None:
        """Take up what one container writes; where it ends, what the next of its name does."""
        async with self._followed:
            while not news.is_set():
                try:
                    if (id := (await ids()).get(name)) is not None:
                        await self._take(id, Reader(name, place), most, lines, news)
                except AimaError as error:
                    log.debug("the log of %s is not to be had now: %s", name, error)
                await anyio.sleep(LOOK_SECONDS)

    async def _take(self, id: str, reader: Reader, most: int, lines: list[Line], news: anyio.Event) -> None:
        rest, mine = b"", 0
        async with self._docker.follow(id, reader.since) as pieces:
            async for piece in pieces:
                whole, _, rest = (rest + piece).rpartition(b"\n")
                new = reader.read(whole.decode("utf-8", "replace").splitlines())
                lines += new[: most - mine]
                mine += len(new)
                if new:
                    news.set()
                if mine >= most or len(rest) > MOST_BYTES:
                    return


def _moment(line: Line) -> int:
    return line.moment


def _moved(places: Mapping[str, Place], lines: Sequence[Line]) -> dict[str, Place]:
    """A cursor behind these lines."""
    moved = dict(places)
    for line in lines:
        moment, count = moved[line.container]
        moved[line.container] = (line.moment, count + 1 if line.moment == moment else 1)
    return moved


def _shown(record: Document, lines: Sequence[Line]) -> list[str]:
    """As they are told: where there are several containers, each line names its own."""
    several = len(record["template"]["containers"]) > 1
    return [_with(line) if several else line.text for line in lines]


def _with(line: Line) -> str:
    moment, _, text = line.text.partition(" ")
    return f"{moment} {line.container}: {text}"
