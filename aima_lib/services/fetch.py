"""From a plan to complete, verified files in the store: each is moved in as soon as it is whole, and is what the next pull begins with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio import from_thread, to_thread

from aima_lib.errors import AimaError, FailedPrecondition, PermissionDenied
from aima_lib.infra.blobs import CHUNK, Blobs, disk_error, need_room, sync
from aima_lib.infra.download import Download, Interrupted, Mismatch, Pace, first_of
from aima_lib.infra.line import Place
from aima_lib.infra.ranges import arrived
from aima_lib.infra.throttle import Throttle
from aima_lib.infra.web import Web
from aima_lib.services.allowance import Hold, Spend
from aima_lib.services.gauge import Meter
from aima_lib.services.joining import Joining
from aima_lib.sources.base import Artefact, Part, Plan, total

AT_ONCE = 4
SPARE = 16 << 20


@dataclass(frozen=True, slots=True)
class File:
    """A complete, verified file. `path` is where it lies until it becomes a blob; one that is a blob already has none."""

    name: str
    sha256: str
    size: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class Ways:
    """What all fetches of a home share."""

    blobs: Blobs
    web: Web
    pace: Pace
    throttle: Throttle
    is_kept: Callable[[str], bool] = lambda _: False  # whether a model has this blob


class Fetch:
    """One plan's files. Parts lie in models/partial/<key>, whole files in models/blobs."""

    def __init__(self, plan: Plan, ways: Ways, hold: Hold, place: Place) -> None:
        self.plan, self._ways, self._blobs, self._hold, self.place = plan, ways, ways.blobs, hold, place
        self._spend: Spend = lambda _: None
        self.begun = False
        self.folder = ways.blobs.partial / plan.key
        self.meter = Meter(total=plan.size)
        self._limit = anyio.CapacityLimiter(AT_ONCE)
        self._taken: list[str] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[list[File]]:
        """Every file, downloaded, joined, verified and in the store. Until the block ends nothing of it is garbage.

        Raises:
            Interrupted: the network failed; what arrived is kept.
            PermissionDenied: the source refuses; what arrived is kept.
            ResourceExhausted: the caller may fetch no more for a while; what arrived is kept. Or the disk has no room.
            AimaError: anything else; nothing is kept.
        """
        self.begun = True
        known = [artefact.sha256 for artefact in self.plan.artefacts if artefact.sha256]
        try:
            with self._blobs.busy(self.folder), self._blobs.wanting(known):
                noted, missing = await to_thread.run_sync(self._prepare)
                with self._hold(missing) as self._spend:
                    files = [await self._artefact(number, artefact, noted) for number, artefact in enumerate(self.plan.artefacts)]
                with self._blobs.wanting([file.sha256 for file in files]):
                    yield files
        except (AimaError, OSError) as error:
            if isinstance(error, AimaError) and self._keeps(error):
                raise
            await self.clear()
            if isinstance(error, OSError):
                raise disk_error(error, self._blobs.models) from error
            raise

    def _keeps(self, error: AimaError) -> bool:
        denied = isinstance(error, PermissionDenied) and self.meter.completed > 0
        return isinstance(error, Interrupted) or error.retry_after is not None or denied

    async def clear(self) -> None:
        """Leave nothing behind that no model has."""
        with anyio.CancelScope(shield=True):
            lone = [sha256 for sha256 in self._taken if not self._ways.is_kept(sha256)]
            await to_thread.run_sync(self._blobs.forget, self.folder, lone)

    def done(self) -> None:
        """A record has the files now: the parts are of no more use. Blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self) -> tuple[dict[str, str], int]:
        """What an earlier fetch noted, and how many bytes are to come, as far as is known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = noted(self.folder)[0]
        missing = [a for a in self.plan.artefacts if not self._blobs.has(a.sha256 or known.get(a.name))]
        here = sum(arrived(path) for path in self.folder.glob("*.part"))
        joined = sum(path.stat().st_size for path in self.folder.glob("*.whole"))
        taken = sum(entry.stat().st_blocks * 512 for entry in self.folder.iterdir())
        sizes = [_size(artefact) for artefact in missing]
        # Parts that are joined lie on the disk twice for a moment: those that are fetched at once.
        ahead = [sum(sorted((part.size or 0 for part in a.parts), reverse=True)[: AT_ONCE + 1]) for a in missing if not a.is_plain]
        need_room(self._blobs.models, max(0, sum(sizes) - taken) + max(ahead, default=0) + (SPARE if missing else 0))
        return known, max(len(missing), sum(sizes) - here - joined)

    async def _artefact(self, number: int, artefact: Artefact, known: dict[str, str]) -> File:
        expected = artefact.sha256 or known.get(artefact.name)
        if expected is None:
            return await self._bring(number, artefact)
        async with self._blobs.one_at_a_time(expected):  # another model may have the very same file on its way
            size = await to_thread.run_sync(self._blobs.checked, expected, artefact.size, from_thread.check_cancelled)
            if size is not None:
                self.meter.resume(size)
                await to_thread.run_sync(self._note, artefact.name, expected)
                return File(artefact.name, expected, size, None)
            return await self._bring(number, artefact)

    async def _bring(self, number: int, artefact: Artefact) -> File:
        target = self.folder / f"{number}.0.part"
        try:
            if artefact.is_plain:
                sha256 = await self._download(artefact.parts[0], target)
            else:
                target, sha256 = await self._joined(number, artefact)
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        size = target.stat().st_size
        await to_thread.run_sync(_compare, artefact, sha256, size, target)
        await to_thread.run_sync(self._keep, artefact.name, sha256, target)
        return File(artefact.name, sha256, size, None)

    def _keep(self, name: str, sha256: str, target: Path) -> None:
        """Into the store; and noted, so that after a crash nothing need be fetched again."""
        if not self._blobs.has(sha256):
            self._taken.append(sha256)
        self._blobs.take(target, sha256)
        self._note(name, sha256)

    def _note(self, name: str, sha256: str) -> None:
        note = self.folder / "done.json"
        fresh = note.with_name("done.json.new")
        files = noted(self.folder)[0] | {name: sha256}
        fresh.write_text(json.dumps({"files": files, "of": len(self.plan.artefacts)}), encoding="utf-8")
        fresh.replace(note)
        sync(self.folder)

    async def _joined(self, number: int, artefact: Artefact) -> tuple[Path, str]:
        """All parts, joined in order while the later ones are still on their way."""
        targets = [self.folder / f"{number}.{place}.part" for place in range(len(artefact.parts))]
        joining = Joining(self.folder / f"{number}.whole", artefact.parts, targets)
        here = [anyio.Event() for _ in targets]
        start, size = await to_thread.run_sync(joining.recall, from_thread.check_cancelled)
        self.meter.resume(min(size, total([part.size for part in artefact.parts[:start]]) or size))

        async def fetch(place: int) -> None:
            async with self._limit:
                await self._download(artefact.parts[place], targets[place])
            here[place].set()

        async with anyio.create_task_group() as group:
            for place in range(start, len(targets)):
                group.start_soon(fetch, place)
            for place in range(start, len(targets)):
                await here[place].wait()
                await to_thread.run_sync(joining.add, place, from_thread.check_cancelled)
        return joining.path, joining.digest()

    async def _download(self, part: Part, target: Path) -> str:
        ways, step, resume = self._ways, self._gained, self.meter.resume
        given = (part.url, target, part.size, part.sha256, part.headers, ways.pace, step, resume, part.renew, ways.throttle, self.place)
        return await Download(ways.web, *given).run()

    def _gained(self, count: int) -> None:
        self.meter.step(count)
        if count > 0:  # bytes that were lost again were fetched all the same
            self._spend(count)


def noted(folder: Path) -> tuple[dict[str, str], bool]:
    """What was noted in a folder of parts: names and digests of files that are blobs, and whether that is all of the plan. Nothing when
    that was nothing, or it was lost."""
    try:
        said = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        return said["files"], len(said["files"]) == said["of"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return {}, False


def _size(artefact: Artefact) -> int:
    return artefact.size or total([part.size for part in artefact.parts]) or 0


def _compare(artefact: Artefact, sha256: str, size: int, path: Path) -> None:
    if artefact.size is not None and size != artefact.size:
        raise Mismatch(f"{artefact.name} has {size} bytes, {artefact.size} were promised", hint="pull again, or name another mirror")
    if artefact.sha256 is not None and sha256 != artefact.sha256:
        raise FailedPrecondition(
            f"{artefact.name} hashes to sha256 {sha256}, expected was {artefact.sha256}",
            hint="the weights are not the ones you expect: check repo, revision, file and sha256",
            details={"sha256": sha256, "expected": artefact.sha256},
        )
    if artefact.sha256 is None and artefact.git_oid and (found := git_oid(path)) != artefact.git_oid:
        raise Mismatch(f"{artefact.name} is {found} to git, promised was {artefact.git_oid}", hint="pull again, or name another mirror")


def git_oid(path: Path) -> str:
    """What git calls a file's content."""
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        for chunk in iter(partial(stream.read, CHUNK), b""):
            state.update(chunk)
    return state.hexdigest()
