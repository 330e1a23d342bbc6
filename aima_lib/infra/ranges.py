"""Which bytes of a file are here: written down beside it as they come, so that a kill costs no more than what was on its way.

`<file>.state` is a line of JSON (the source's tag, the size, how long a segment is) and then eight bytes a segment: how many of it are
here, from its start. They are written after the bytes they count. Every method blocks, and for no longer than a write into the page cache.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

COUNT = struct.Struct("<Q")
UNBOUNDED = 1 << 62
BLOCK = 1 << 20
AT_ONCE = 64 << 20
PIECE, NOTED = 256 << 10, 2 << 20


class Ranges:
    """A file that is written in segments, each from its start. `tag` is what the source at `place` called its content, "" for nothing."""

    def __init__(self, path: Path, segment: int, place: str = "") -> None:
        self.path, self._state, self._place = path, path.with_name(f"{path.name}.state"), place
        self._segment = self._preferred = segment
        self.tag = ""
        self.total: int | None = None
        self.counts: list[int] = []
        self._file = self._notes = -1
        self._offset = 0
        self.hashed, self._hash = 0, hashlib.sha256()

    @property
    def have(self) -> int:
        """Bytes here."""
        return sum(self.counts)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here; never while the size is unknown."""
        return self.total is not None and bool(self.counts) and self.have == self.total

    def bounds(self, number: int) -> tuple[int, int | None]:
        """Where a segment begins, and where it ends: None while the size is unknown."""
        start = number * self._segment
        return start, None if self.total is None else min(start + self._segment, self.total)

    def is_done(self, number: int) -> bool:
        """Whether all of a segment is here."""
        start, end = self.bounds(number)
        return end is not None and self.counts[number] == end - start

    def prefix(self) -> int:
        """How many bytes are here without a gap from the file's start."""
        known = 0
        for number, count in enumerate(self.counts):
            known += count
            if not self.is_done(number):
                break
        return known

    def recall(self, trusting: bool) -> None:
        """Take up what an earlier process left. `trusting`: no digest is to come, so nothing is believed that a power cut may have torn,
        or that another place sent. What such a place called its content says nothing of this one's.
        """
        try:
            head, _, counts = self._state.read_bytes().partition(b"\n")
            said = json.loads(head)
            self.tag, self.total, self._segment = said["tag"], said["total"], said["segment"]
            self.counts = [found[0] for found in COUNT.iter_unpack(counts[: len(counts) // 8 * 8])]
            expected = 1 if self.total is None else max(1, -(-self.total // self._segment))
            if len(self.counts) != expected or not self._plausible() or (trusting and (not self.tag or said["boot"] != boot())):
                raise ValueError
            if said["place"] != self._place:
                if trusting:
                    raise ValueError
                self.tag = ""
            self._open(len(head) + 1)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.forget()

    def _plausible(self) -> bool:
        size = self.path.stat().st_size
        ends = [(start + count, end) for number, count in enumerate(self.counts) for start, end in [self.bounds(number)]]
        return all(here <= (size if end is None else min(end, size)) for here, end in ends if here)

    def lay(self, tag: str, total: int | None, *, whole: bool = False, segment: int | None = None) -> None:
        """Begin anew, knowing the source's tag and the size; `whole`: in one piece. The disk is reserved as far as it can be.

        Raises:
            OSError: ENOSPC, so much is not free.
        """
        self.forget()
        self.tag, self.total = tag, total
        self._segment = UNBOUNDED if whole or total is None else segment or self._preferred
        self.counts = [0] * (1 if total is None else max(1, -(-total // self._segment)))
        said = {"tag": tag, "total": total, "segment": self._segment, "boot": boot(), "place": self._place}
        head = json.dumps(said).encode() + b"\n"
        self.path.touch()
        fresh = self._state.with_name(f"{self._state.name}.new")
        fresh.write_bytes(head + bytes(COUNT.size * len(self.counts)))
        fresh.replace(self._state)
        self._open(len(head))
        if total:
            reserve(self._file, total)

    def _open(self, offset: int) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._notes = os.open(self._state, os.O_RDWR | os.O_CLOEXEC)
        self._offset = offset

    def write(self, number: int, pieces: Sequence[bytes]) -> int:
        """Add bytes to a segment; returns how many."""
        before = self.counts[number]
        for piece in pieces:
            self._put(number, memoryview(piece))
        self._note(number)
        return self.counts[number] - before

    def take(self, number: int, fill: Callable[[memoryview], int], most: int) -> int:
        """Add up to so many bytes to a segment as `fill` brings them into a buffer, until it brings none; returns how many. What came
        before `fill` fails is there.
        """
        buffer, taken, noted = memoryview(bytearray(min(PIECE, most))), 0, 0
        try:
            while taken < most and (count := fill(buffer[: most - taken])):
                self._put(number, buffer[:count])
                taken += count
                if taken - noted >= NOTED:
                    self._note(number)
                    noted = taken
        finally:
            self._note(number)
        write_back(self._file, self.bounds(number)[0] + self.counts[number] - taken, taken)
        return taken

    def _put(self, number: int, view: memoryview) -> None:
        start = self.bounds(number)[0]
        while view:
            done = os.pwrite(self._file, view, start + self.counts[number])
            self.counts[number] += done
            view = view[done:]

    def _note(self, number: int) -> None:
        os.pwrite(self._notes, COUNT.pack(self.counts[number]), self._offset + COUNT.size * number)

    def close_at(self, size: int) -> None:
        """The source has ended: the size is known now."""
        self.total = size

    def hash_on(self, check: Callable[[], None] = lambda: None) -> None:
        """Hash some of what is here without a gap and not hashed yet. `check` may raise to stop."""
        limit = min(self.prefix(), self.hashed + AT_ONCE)
        while self.hashed < limit:
            check()
            data = os.pread(self._file, min(BLOCK, limit - self.hashed), self.hashed)
            if not data:
                raise OSError(errno.EIO, "the file is shorter than what was written", str(self.path))
            self._hash.update(data)
            self.hashed += len(data)

    def digest(self) -> str:
        """The sha256 of what was hashed."""
        return self._hash.hexdigest()

    def forget(self) -> int:
        """Remove the file and what is known of it; returns how many bytes are lost."""
        self.close()
        lost = self.have
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.tag, self.total, self.counts, self._segment = "", None, [], self._preferred
        self.hashed, self._hash = 0, hashlib.sha256()
        return lost

    def close(self) -> None:
        """Let go of the files; what is on disk stays."""
        for descriptor in (self._file, self._notes):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._notes = -1


@cache
def boot() -> str:
    """What is the same until this machine starts anew; "" where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def arrived(path: Path) -> int:
    """How many bytes of a download are here, by what is written beside it; 0 where nothing is."""
    try:
        _, _, counts = path.with_name(f"{path.name}.state").read_bytes().partition(b"\n")
        return sum(found[0] for found in COUNT.iter_unpack(counts[: len(counts) // 8 * 8]))
    except OSError:
        return 0


def write_back(descriptor: int, start: int, size: int) -> None:
    """Have these bytes go to the disk now, where the system can be told, and not wait for it: syncing the whole at the end takes less."""
    if sys.platform == "linux":
        call = ctypes.CDLL(None).sync_file_range
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        call(descriptor, start, size, 2)  # SYNC_FILE_RANGE_WRITE


def reserve(descriptor: int, size: int) -> None:
    """Have the file system set so many bytes aside, where it can; never by writing them.

    Raises:
        OSError: ENOSPC or EDQUOT, there is not so much.
    """
    if sys.platform != "linux":
        return
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes, call.restype = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64], ctypes.c_int
    if call(descriptor, 0, 0, size) and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
