"""What an app's containers write, read once or followed: by a cursor, which says of each how far it was read, and a wait that ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import anyio

from aima_lib.errors import AimaError
from aima_lib.infra.clock import parse
from aima_lib.infra.docker import Docker
from aima_lib.infra.store import Document

FOLLOWED, GATHER_SECONDS, LOOK_SECONDS, MOST_BYTES = 32, 0.1, 0.5, 4 << 20
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
Ids = Callable[[], Awaitable[Mapping[str, str]]]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """A line, its container, and when it was written in nanoseconds since 1970."""

    moment: int
    container: str
    text: str


def read(container: str, text: str) -> Line:
    """A line as Docker has it, with its time before it. One without a time is of the beginning."""
    found = STAMP.match(text.partition(" ")[0])
    if found is None:
        return Line(0, container, text)
    seconds = int(parse(found[1] + found[3]).timestamp())
    return Line(seconds * 10**9 + int((found[2] or "0").ljust(9, "0")), container, text)


def cursor_of(text: str) -> dict[str, int]:
    """How far each container was read, by a text that fits the pattern of app.logs."""
    return {name: int(moment) for name, _, moment in (part.partition("=") for part in text.split(","))}


def told(cursor: Mapping[str, int]) -> str:
    """The text of a cursor."""
    return ",".join(f"{name}={moment}" for name, moment in cursor.items())


class AppLog:
    """Reads the logs of an app's containers. `Ids` says which there are now, by their names in the template."""

    def __init__(self, docker: Docker) -> None:
        self._docker, self._followed = docker, anyio.Semaphore(FOLLOWED)

    async def last(self, record: Document, ids: Ids, most: int, since: float | None) -> tuple[Sequence[str], dict[str, int]]:
        """The last lines of all together, and the cursor behind them."""
        lines, cursor = list[Line](), dict.fromkeys(record["template"]["containers"], int((since or 0) * 1e9))
        for name, id in (await ids()).items():
            lines += [read(name, text) for text in await self._docker.logs(id, most, since)]
        return _shown(record, sorted(lines, key=_moment)[-most:]), _moved(cursor, lines)

    async def after(
        self, record: Document, ids: Ids, cursor: Mapping[str, int], most: int, seconds: float
    ) -> tuple[Sequence[str], dict[str, int]]:
        """The next lines after a cursor, and the cursor behind those. Where there are none yet it waits for some, no longer than so."""
        places = {name: cursor.get(name, 0) for name in record["template"]["containers"]}
        lines = list[Line]()
        for name, id in (await ids()).items():
            said = await self._docker.logs(id, None, _since(places[name]))
            lines += [line for line in (read(name, text) for text in said) if line.moment > places[name]]
        if not lines:
            await self._wait(ids, places, most, seconds, lines)
        taken = sorted(lines, key=_moment)[:most]
        return _shown(record, taken), _moved(places, taken)

    async def _wait(self, ids: Ids, places: Mapping[str, int], most: int, seconds: float, lines: list[Line]) -> None:
        """Until one of them writes something, and a moment longer, for what else it writes."""
        news = anyio.Event()
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                for name in places:
                    tasks.start_soon(self._follow, name, ids, places[name], most, lines, news)
                await news.wait()
                await anyio.sleep(GATHER_SECONDS)
                tasks.cancel_scope.cancel()

    async def _follow(self, name: str, ids: Ids, place: int, most: int, lines: list[Line], news: anyio.Event) -> None:
        """Take up what one container writes; where it ends, what the next of its name does."""
        async with self._followed:
            while not news.is_set():
                try:
                    if (id := (await ids()).get(name)) is not None:
                        await self._take(name, id, place, most, lines, news)
                except AimaError as error:
                    log.debug("the log of %s is not to be had now: %s", name, error)
                await anyio.sleep(LOOK_SECONDS)

    async def _take(self, name: str, id: str, place: int, most: int, lines: list[Line], news: anyio.Event) -> None:
        rest, mine = b"", 0
        async with self._docker.follow(id, _since(place)) as pieces:
            async for piece in pieces:
                whole, _, rest = (rest + piece).rpartition(b"\n")
                new = [line for line in (read(name, text) for text in whole.decode("utf-8", "replace").splitlines()) if line.moment > place]
                lines += new[: most - mine]
                mine += len(new)
                if new:
                    news.set()
                if mine >= most or len(rest) > MOST_BYTES:
                    return


def _moment(line: Line) -> int:
    return line.moment


def _moved(places: Mapping[str, int], lines: Sequence[Line]) -> dict[str, int]:
    """A cursor behind these lines."""
    moved = dict(places)
    for line in lines:
        moved[line.container] = max(moved[line.container], line.moment)
    return moved


def _since(place: int) -> float | None:
    """What Docker is asked for; a moment more than that, for its times are finer than such a number."""
    return place / 1e9 - 1e-6 if place else None


def _shown(record: Document, lines: Sequence[Line]) -> list[str]:
    """As they are told: where there are several containers, each line names its own."""
    several = len(record["template"]["containers"]) > 1
    return [_with(line) if several else line.text for line in lines]


def _with(line: Line) -> str:
    moment, _, text = line.text.partition(" ")
    return f"{moment} {line.container}: {text}"
