"""From a plan to complete, verified files: parts side by side, joined in order, hashed on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument
from aima_lib.infra.blobs import CHUNK, Blobs, digest, disk_error, need_room
from aima_lib.infra.download import Download, Interrupted, Mismatch, Pace
from aima_lib.infra.home import write_private
from aima_lib.infra.web import Web
from aima_lib.services.allowance import Hold, Spend, unlimited
from aima_lib.sources.base import Artefact, Part, Plan, matches, total

AT_ONCE = 4
REPORT_SECONDS = 0.5
SPARE = 16 << 20


@dataclass(frozen=True, slots=True)
class File:
    """A complete, verified file. `path` is where it lies until it becomes a blob; a blob that was there already has none."""

    name: str
    sha256: str
    size: int
    path: Path | None


@dataclass(slots=True)
class Meter:
    """Counts bytes and tells `hear` about twice a second."""

    hear: Callable[[Meter], None] = lambda _: None
    total: int | None = None
    completed: int = 0
    rate: float | None = None
    _seen: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def step(self, count: int) -> None:
        """`count` bytes more (or, negative, lost)."""
        self.completed += count
        moment, before = self._seen
        waited = time.monotonic() - moment
        if waited >= REPORT_SECONDS:
            latest = max(0.0, (self.completed - before) / waited)
            self.rate = latest if self.rate is None else 0.7 * self.rate + 0.3 * latest
            self._seen = (moment + waited, self.completed)
            self.hear(self)

    def resume(self, count: int) -> None:
        """`count` bytes that were there before count as done, and not as speed."""
        self.completed += count
        self._seen = (self._seen[0], self._seen[1] + count)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go at the present rate, or None."""
        if self.total is None or not self.rate:
            return None
        return round(max(0, self.total - self.completed) / self.rate, 1)


class Fetch:
    """One plan's files, in models/partial/<key> until all are whole."""

    def __init__(self, plan: Plan, blobs: Blobs, web: Web, pace: Pace, hold: Hold = unlimited) -> None:
        self.plan, self._blobs, self._web, self._pace, self._hold = plan, blobs, web, pace, hold
        self._spend: Spend = lambda _: None
        self.begun = False
        self.folder = blobs.partial / plan.key
        self.meter = Meter(total=plan.size)
        self._limit = anyio.CapacityLimiter(AT_ONCE)

    async def run(self) -> list[File]:
        """Download, join and verify everything.

        Raises:
            Interrupted: the network failed; what arrived is kept.
            ResourceExhausted: the caller may fetch no more for a while; what arrived is kept. Or the disk has no room.
            AimaError: anything else; nothing is kept.
        """
        self.begun = True
        try:
            with _one_error():
                known, missing = await to_thread.run_sync(self._prepare)
                with self._hold(missing) as self._spend:
                    return [await self._artefact(number, artefact, known) for number, artefact in enumerate(self.plan.artefacts)]
        except (AimaError, OSError) as error:
            if isinstance(error, Interrupted) or (isinstance(error, AimaError) and error.retry_after is not None):
                raise
            await self.clear()
            if isinstance(error, OSError):
                raise disk_error(error, self._blobs.models) from error
            raise

    async def clear(self) -> None:
        """Leave no part behind."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def note(self, files: list[File]) -> None:
        """Say what is about to become blobs: after a crash in the middle nothing need be fetched again."""
        write_private(self.folder / "done.json", json.dumps({file.name: file.sha256 for file in files}))

    def _prepare(self) -> tuple[dict[str, str], int]:
        """What an earlier fetch noted, and how many bytes are to come, as far as is known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = noted(self.folder)
        missing = [a for a in self.plan.artefacts if not self._blobs.has(a.sha256 or known.get(a.name))]
        here = sum(entry.stat().st_size for entry in self.folder.iterdir())
        # Parts that must be joined lie on the disk twice for a moment.
        sizes = [_size(artefact) for artefact in missing]
        twice = [_size(artefact) for artefact in missing if not _plain(artefact)]
        need_room(self._blobs.models, max(0, sum(sizes) - here) + sum(twice) + (SPARE if missing else 0))
        parts = sum(path.stat().st_size for path in self.folder.glob("*.part"))
        return known, max(len(missing), sum(sizes) - parts)

    async def _artefact(self, number: int, artefact: Artefact, known: dict[str, str]) -> File:
        expected = artefact.sha256 or known.get(artefact.name)
        if expected and (found := await to_thread.run_sync(self._reuse, artefact, expected)):
            self.meter.resume(found.size)
            return found
        targets = [self.folder / f"{number}.{place}.part" for place in range(len(artefact.parts))]
        digests: list[str] = [""] * len(targets)

        async def fetch(place: int, part: Part) -> None:
            async with self._limit:
                digests[place] = await self._download(part, targets[place])

        async with anyio.create_task_group() as group:
            for place, part in enumerate(artefact.parts):
                group.start_soon(fetch, place, part)
        if _plain(artefact):
            whole, sha256 = targets[0], digests[0]
        else:
            whole = self.folder / f"{number}.whole"
            sha256 = await to_thread.run_sync(_join, artefact.parts, targets, whole)
        size = whole.stat().st_size
        _compare(artefact, sha256, size)
        return File(artefact.name, sha256, size, whole)

    async def _download(self, part: Part, target: Path) -> str:
        step, resume = self._gained, self.meter.resume
        return await Download(self._web, part.url, target, part.size, part.sha256, part.headers, self._pace, step, resume).run()

    def _gained(self, count: int) -> None:
        self.meter.step(count)
        if count > 0:  # bytes that were lost again were fetched all the same
            self._spend(count)

    def _reuse(self, artefact: Artefact, sha256: str) -> File | None:
        """A blob that is here and still what its name says."""
        if not self._blobs.has(sha256, artefact.size):
            return None
        path = self._blobs.path(sha256)
        if digest(path, lambda _: from_thread.check_cancelled()) != sha256:
            return None
        return File(artefact.name, sha256, path.stat().st_size, None)


def noted(folder: Path) -> dict[str, str]:
    """What `note` said of a folder of parts: names and digests. Nothing when it said nothing, or the disk lost it."""
    try:
        said: dict[str, str] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return said


@contextmanager
def _one_error() -> Iterator[None]:
    """Of several parts that fail at once, the first speaks for all."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _plain(artefact: Artefact) -> bool:
    return len(artefact.parts) == 1 and artefact.parts[0].member is None


def _size(artefact: Artefact) -> int:
    return artefact.size or total([part.size for part in artefact.parts]) or 0


def _compare(artefact: Artefact, sha256: str, size: int) -> None:
    if artefact.size is not None and size != artefact.size:
        raise Mismatch(f"{artefact.name} has {size} bytes, {artefact.size} were promised", hint="pull again, or name another mirror")
    if artefact.sha256 is not None and sha256 != artefact.sha256:
        raise FailedPrecondition(
            f"{artefact.name} hashes to sha256 {sha256}, expected was {artefact.sha256}",
            hint="the weights are not the ones you expect: check repo, revision, file and sha256",
            details={"sha256": sha256, "expected": artefact.sha256},
        )


def _join(parts: tuple[Part, ...], paths: list[Path], target: Path) -> str:
    """Write the parts one after the other; returns the sha256 of the whole."""
    state = hashlib.sha256()
    with target.open("wb", buffering=0) as out:
        for part, path in zip(parts, paths, strict=True):
            with _opened(part, path) as stream:
                while chunk := stream.read(CHUNK):
                    from_thread.check_cancelled()
                    state.update(chunk)
                    out.write(chunk)
    return state.hexdigest()


@contextmanager
def _opened(part: Part, path: Path) -> Iterator[BinaryIO]:
    if part.member is None:
        with path.open("rb") as plain:
            yield plain
        return
    try:
        with zipfile.ZipFile(path) as archive:
            info = _member(archive, part.member, part.url)
            need_room(path.parent, info.file_size)
            with archive.open(info) as member:  # gives no more than info.file_size, and checks its CRC
                yield cast(BinaryIO, member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise Mismatch(f"{part.url.rpartition('/')[2]} is not a usable zip: {error}", hint="name another mirror") from error


def _member(archive: zipfile.ZipFile, pattern: str, url: str) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if not info.is_dir() and matches(info.filename, pattern)]
    if len(found) != 1:
        names = ", ".join(info.filename for info in (found or archive.infolist())[:8])
        raise InvalidArgument(
            f"{pattern!r} fits {len(found)} files of {url.rpartition('/')[2]}, it must fit exactly one",
            hint=f"there are {names}; name one by file",
        )
    return found[0]
