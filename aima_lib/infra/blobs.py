"""Weights on disk, named by their content: models/blobs/sha256-<hex>, hard-linked into models/<id>/<file>."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from aima_lib.errors import AimaError, InvalidArgument, ResourceExhausted

CHUNK = 1 << 20
PREFIX = "sha256-"
FULL = (errno.ENOSPC, errno.EDQUOT)
LARGER = "clear up with model.gc, delete a model, or move the home to a larger disk"
ROOM = [{"unit": "model.gc", "arguments": {"dry_run": True}}, {"unit": "model.list", "arguments": {}}]
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT)  # the last: open, and deleted since


class Blobs:
    """One content-addressed folder. Methods block, but for the contexts: call them from a worker thread.

    Aside from blobs lie `partial`, what is on its way, and `quarantine`, blobs that were found to be other than their names say.
    """

    def __init__(self, models: Path) -> None:
        self.models, self.folder, self.partial = models, models / "blobs", models / "partial"
        self.quarantine = models / "quarantine"
        self._known: dict[str, tuple[int, int, int]] = {}
        self._busy: Counter[Path] = Counter()
        self._wanted: Counter[str] = Counter()
        self._locks: dict[str, tuple[anyio.Lock, int]] = {}

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.folder, self.partial):
            folder.mkdir(parents=True, exist_ok=True)

    # What is in use though no record says so

    @contextmanager
    def busy(self, folder: Path) -> Iterator[None]:
        """A folder of `partial` is worked in for as long as the block lasts."""
        self._busy[folder] += 1
        try:
            yield
        finally:
            self._busy[folder] -= 1

    @contextmanager
    def wanting(self, digests: Iterable[str]) -> Iterator[None]:
        """Blobs that are about to be in a record are no garbage while the block lasts."""
        wanted = list(digests)
        self._wanted.update(wanted)
        try:
            yield
        finally:
            self._wanted.subtract(wanted)

    @asynccontextmanager
    async def one_at_a_time(self, sha256: str) -> AsyncIterator[None]:
        """Whoever brings this content is alone with it while the block lasts."""
        lock, waiting = self._locks.get(sha256, (anyio.Lock(), 0))
        self._locks[sha256] = lock, waiting + 1
        try:
            async with lock:
                yield
        finally:
            _, waiting = self._locks[sha256]
            self._locks[sha256] = lock, waiting - 1
            if waiting == 1:
                del self._locks[sha256]

    # Content

    def path(self, sha256: str) -> Path:
        """Where the content with this digest lies, or would."""
        return self.folder / f"{PREFIX}{sha256}"

    def has(self, sha256: str | None, size: int | None = None) -> bool:
        """Whether the content is here, whole as far as its size tells."""
        if sha256 is None:
            return False
        try:
            return size in (None, self.path(sha256).stat().st_size)
        except FileNotFoundError:
            return False

    def checked(self, sha256: str, size: int | None = None, check: Callable[[], None] = lambda: None) -> int | None:
        """The size of a blob that is here and is what its name says: hashed once, and again when it is not the file it was.

        One that is something else is put aside. `check` may raise to stop.
        """
        path = self.path(sha256)
        try:
            identity = _identity(path)
            if size not in (None, identity[1]) or (self._known.get(sha256) != identity and digest(path, lambda _: check()) != sha256):
                self.put_aside(sha256)
                return None
        except FileNotFoundError:
            return None
        self._known[sha256] = identity
        return identity[1]

    def put_aside(self, sha256: str) -> Path | None:
        """Into quarantine with a blob that is not what its name says; nobody is given it any more."""
        self._known.pop(sha256, None)
        self.quarantine.mkdir(parents=True, exist_ok=True)
        target = self.quarantine / f"{PREFIX}{sha256}.{time.time_ns()}"
        try:
            self.path(sha256).replace(target)
        except FileNotFoundError:
            return None
        sync(self.folder)
        return target

    def take(self, part: Path, sha256: str) -> None:
        """Move a complete, verified file in; when this returns, a power cut does not lose it."""
        blob = self.path(sha256)
        if self.checked(sha256) is not None:  # models share one inode: a second would not be freed with the first
            part.unlink(missing_ok=True)
            return
        sync(part)
        part.replace(blob)
        sync(self.folder)
        self._known[sha256] = _identity(blob)

    def link(self, sha256: str, target: Path) -> None:
        """Give the content a readable name: a hard link, or a copy where the disk has none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(self.path(sha256)):
            return
        target.unlink(missing_ok=True)
        join_or_copy(self.path(sha256), target)
        sync(target.parent)

    def is_alone(self, sha256: str) -> bool:
        """Whether nothing but one model's folder shares a blob's bytes: a file that was imported by a link still has them."""
        path = self.path(sha256)
        return path.exists() and path.stat().st_nlink <= 2

    # Removing

    def forget(self, folder: Path, lone: Sequence[str]) -> None:
        """Remove a folder of parts that nobody works in, and those of these blobs that nobody else wants."""
        if not self._busy[folder]:
            shutil.rmtree(folder, ignore_errors=True)
        for sha256 in lone:
            if not self._wanted[sha256]:
                self.path(sha256).unlink(missing_ok=True)

    def garbage(self, kept: set[str], models: set[str]) -> list[Path]:
        """What nobody has: blobs in no record, parts that nobody fetches, what is in quarantine, folders of models that are gone.

        Of those folders only what AIMA put there: names of blobs' content.
        """
        found = [path for path in _entries(self.folder) if not (self._is_kept(path.name, kept))]
        found += [path for path in _entries(self.partial) if not self._busy[path]]
        found += list(_entries(self.quarantine))
        known = {path.stat().st_ino for folder in (self.folder, self.quarantine) for path in _entries(folder)}
        strays = [path for path in _entries(self.models) if path.is_dir() and path.name not in models | {"blobs", "partial", "quarantine"}]
        found += [file for stray in strays for file in stray.rglob("*") if file.is_file() and file.lstat().st_ino in known]
        return found

    def _is_kept(self, name: str, kept: set[str]) -> bool:
        sha256 = name.removeprefix(PREFIX)
        return name.startswith(PREFIX) and (sha256 in kept or self._wanted[sha256] > 0)

    def weigh(self, paths: Sequence[Path]) -> int:
        """Bytes that the disk would get back without these files and folders: of each file whose every name is among them."""
        names: Counter[tuple[int, int]] = Counter()
        states: dict[tuple[int, int], os.stat_result] = {}
        for path in paths:
            for file in [path] if not path.is_dir() else path.rglob("*"):
                try:
                    state = file.lstat()
                except FileNotFoundError:
                    continue
                if not file.is_dir():
                    names[state.st_dev, state.st_ino] += 1
                    states[state.st_dev, state.st_ino] = state
        return sum(state.st_blocks * 512 for inode, state in states.items() if names[inode] >= state.st_nlink)

    def discard(self, paths: Sequence[Path]) -> None:
        """Remove files and folders of ours, and folders of models that are empty then."""
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
                continue
            path.unlink(missing_ok=True)
            if path.parent not in (self.folder, self.partial, self.quarantine):
                try:
                    path.parent.rmdir()
                except OSError:
                    pass  # something else is in it, which is not ours
        for folder in (self.folder, self.partial):
            sync(folder)

    def drop(self, folder: Path, orphans: list[str]) -> int:
        """Remove a model's folder and the blobs nobody else needs.

        Returns the bytes that the disk has got back: of each file whose last link is gone, asked of the file system after the removal.
        """
        names = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()] if folder.is_dir() else []
        names += [self.path(sha256) for sha256 in orphans if self.path(sha256).exists()]
        open_files = [os.open(name, os.O_RDONLY) for name in names]
        try:
            for name in names:
                name.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            gone = {state.st_ino: state.st_blocks * 512 for state in map(os.fstat, open_files) if state.st_nlink == 0}
        finally:
            for descriptor in open_files:
                os.close(descriptor)
        sync(self.folder)
        return sum(gone.values())


def _identity(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def join_or_copy(source: Path, target: Path) -> str:
    """Hard-link `source` as `target`, or copy it; says which: "link" or "copy". A link to an open file (/proc/self/fd) means that file."""
    try:
        _link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        shutil.copyfile(source, target)
        return "copy"
    return "link"


def _link(source: Path, target: Path) -> None:
    if os.link not in os.supports_dir_fd:
        os.link(source, target)
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.link(source, target.name, dst_dir_fd=folder)  # with a folder given, and only then, Python follows links
    finally:
        os.close(folder)


def sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path, step: Callable[[int], None] = lambda _: None) -> str:
    """The file's sha256; `step` hears how many bytes each chunk had, and may raise to stop."""
    state = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
            step(len(chunk))
    return state.hexdigest()


def need_room(folder: Path, bytes_needed: int) -> None:
    """Refuse before the first byte what cannot end well.

    Raises:
        ResourceExhausted: the disk under `folder` has less room than that.
    """
    free = shutil.disk_usage(folder).free
    if bytes_needed > free:
        raise ResourceExhausted(
            f"{bytes_needed} bytes are needed on the disk of {folder}, {free} are free",
            hint=LARGER,
            next=ROOM,
            details={"needed_bytes": bytes_needed, "free_bytes": free},
        )


def disk_error(error: OSError, folder: Path) -> AimaError:
    """What a failed write means for the caller."""
    if error.errno in FULL:
        free = shutil.disk_usage(folder).free
        return ResourceExhausted(
            f"the disk of {folder} is full ({free} bytes free): {error.strerror}",
            hint=LARGER,
            next=ROOM,
            details={"free_bytes": free},
        )
    return InvalidArgument(f"{error.filename or folder}: {error.strerror or error}")
