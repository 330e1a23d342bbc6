"""One file over HTTP into one file on disk, going on after a reset, a stall or a kill from the bytes that are there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from aima_lib.errors import Unavailable
from aima_lib.infra.blobs import CHUNK
from aima_lib.infra.egress import Again
from aima_lib.infra.places import shown
from aima_lib.infra.web import Web

if TYPE_CHECKING:
    from aima_lib.infra.egress import Response

RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Interrupted(Unavailable):
    """The network gave up; what arrived is kept, and the next pull goes on from there."""


class Mismatch(Unavailable):
    """The bytes are not those that were promised; nothing of them is kept."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how fast to try again: `attempts` failures in a row without a byte between them end a download."""

    attempts: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20


@dataclass(slots=True)
class Download:
    """A download under way. `resumed` hears of the bytes that were there, `step` of those gained or (negative) lost since."""

    web: Web
    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    pace: Pace = field(default_factory=Pace)
    step: Callable[[int], None] = lambda _: None
    resumed: Callable[[int], None] = lambda _: None
    _have: int = 0
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    _total: int | None = None

    async def run(self) -> str:
        """Fetch and verify; returns the sha256.

        Raises:
            Interrupted: the network failed too often in a row.
            Mismatch: size or digest are not as promised.
        """
        await anyio.to_thread.run_sync(self._recall)
        self.resumed(self._have)
        if self.size is not None and self._have > self.size:
            self._start_over()
        resumed = self._have > 0
        await self._persist()
        if (wrong := self._wrong()) and resumed:  # the old bytes may be the bad ones: once more, from nothing
            self._start_over()
            await self._persist()
            wrong = self._wrong()
        if wrong:
            self._start_over()
            raise Mismatch(f"{shown(self.url)}: {wrong}", hint="pull again; if it stays so, name another mirror")
        return self._hash.hexdigest()

    async def _persist(self) -> None:
        failures, before = 0, -1
        while True:
            try:
                if await self._attempt():
                    return
            except Again as error:
                failures = 1 if self._have > before else failures + 1
                before = max(before, self._have)  # a server that always begins anew gets no further by getting as far again
                if failures > self.pace.attempts:
                    raise self._interrupted(error) from error
                backoff = self.pace.first_wait_seconds * 2 ** (failures - 1)
                await anyio.sleep(min(error.wait_seconds or backoff, self.pace.longest_wait_seconds))

    async def _attempt(self) -> bool:
        """One request; says whether the file is whole now."""
        if self._have and self._have == (self.size if self.size is not None else self._total):
            return True
        headers = {**self.headers, "Accept-Encoding": "identity"}
        validator = self._validator()
        if self._have:
            headers["Range"] = f"bytes={self._have}-"
            if validator.startswith('"'):
                headers["If-Range"] = validator
        async with self.web.stream(self.url, headers) as response:
            if response.status_code == 416:
                return self._beyond(response)
            self._align(response, validator)
            await self._receive(response)
        return self._complete()

    def _align(self, response: Response, validator: str) -> None:
        """Make the file end where this response begins."""
        current = response.headers.get("etag") or response.headers.get("last-modified") or ""
        length = response.headers.get("content-length")
        if response.status_code == 206:
            found = RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != self._have or (validator and current and current != validator):
                self._start_over()
                raise Again(f"{shown(self.url)} changed while it was read")
            self._total = int(found[2]) if found[2] != "*" else None
        else:
            if self._have:
                self._start_over()
            self._total = int(length) if length and length.isdigit() else None
        self._tag().write_text(current, encoding="utf-8")

    async def _receive(self, response: Response) -> None:
        limit, buffer = self.size if self.size is not None else self._total, bytearray()
        try:
            async for chunk in response.aiter_raw():
                buffer += chunk
                if limit is not None and self._have + len(buffer) > limit:
                    buffer.clear()
                    self._start_over()
                    raise Mismatch(f"{shown(self.url)} sends more than its {limit} bytes", hint="name another mirror")
                if len(buffer) >= CHUNK:
                    full, buffer = buffer, bytearray()
                    await anyio.to_thread.run_sync(self._write, full)
                    self.step(len(full))
        finally:
            if buffer:  # what came before a reset counts, else a link that breaks every 100 KB never gets further
                self._write(buffer)
                self.step(len(buffer))

    def _complete(self) -> bool:
        expected = self.size if self.size is not None else self._total
        if not self._have:
            self._write(b"")
        if expected is not None and self._have < expected:
            if self._total is not None and self._total < expected and self._have == self._total:
                return True  # the server says this is all of it: `_wrong` tells
            raise Again(f"{shown(self.url)} ended after {self._have} of {expected} bytes")
        return True

    def _beyond(self, response: Response) -> bool:
        """The server has nothing after what we have: either that is the whole file, or it changed."""
        if response.headers.get("content-range", "") == f"bytes */{self._have}" and self.size in (None, self._have):
            return True
        self._start_over()
        raise Again(f"{shown(self.url)} is shorter than before")

    def _wrong(self) -> str | None:
        if self.size is not None and self._have != self.size:
            return f"{self._have} bytes came, {self.size} were promised"
        if self.sha256 is not None and self._hash.hexdigest() != self.sha256:
            return f"the bytes hash to sha256 {self._hash.hexdigest()}, promised was {self.sha256}"
        return None

    def _interrupted(self, error: Again) -> Interrupted:
        kept = f"{self._have} of {self.size or self._total or 'unknown'} bytes of it are kept, the next pull goes on from there"
        return Interrupted(f"{error}; {kept}", hint=error.hint, details={**error.details, "kept_bytes": self._have})

    # Blocking

    def _recall(self) -> None:
        """Take up what an earlier attempt left, unless nothing could tell whether it still fits."""
        if not self.path.exists():
            return
        if not self._validator() and self.sha256 is None:
            self.path.unlink()
            return
        with self.path.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                anyio.from_thread.check_cancelled()
                self._hash.update(chunk)
                self._have += len(chunk)

    def _write(self, data: bytes | bytearray) -> None:
        with self.path.open("ab", buffering=0) as stream:
            view = memoryview(data)
            while view:
                written = stream.write(view)
                self._hash.update(view[:written])
                self._have += written
                view = view[written:]

    def _start_over(self) -> None:
        self.path.unlink(missing_ok=True)
        self._tag().unlink(missing_ok=True)
        self.step(-self._have)
        self._have, self._hash, self._total = 0, hashlib.sha256(), None

    def _validator(self) -> str:
        return self._tag().read_text(encoding="utf-8") if self._tag().exists() else ""

    def _tag(self) -> Path:
        return self.path.with_name(f"{self.path.name}.etag")
