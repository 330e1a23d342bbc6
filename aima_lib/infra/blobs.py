"""Weights on disk, named by their content: models/blobs/sha256-<hex>, hard-linked into models/<id>/<file>."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from aima_lib.errors import AimaError, InvalidArgument, ResourceExhausted

CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT)  # the last: open, and deleted since


class Blobs:
    """One content-addressed folder. Every method blocks: call it from a worker thread."""

    def __init__(self, models: Path) -> None:
        self.models, self.folder, self.partial = models, models / "blobs", models / "partial"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.folder, self.partial):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content with this digest lies, or would."""
        return self.folder / f"sha256-{sha256}"

    def has(self, sha256: str | None, size: int | None = None) -> bool:
        """Whether the content is here, whole as far as its size tells."""
        if sha256 is None:
            return False
        try:
            return size in (None, self.path(sha256).stat().st_size)
        except FileNotFoundError:
            return False

    def take(self, part: Path, sha256: str) -> None:
        """Move a complete, verified file in; when this returns, a power cut does not lose it."""
        blob = self.path(sha256)
        if blob.exists() and digest(blob) == sha256:  # models share one inode: a second would not be freed with the first
            part.unlink()
            return
        sync(part)
        part.replace(blob)
        sync(self.folder)

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
            hint="delete a model, or move the home to a larger disk",
            next=[{"unit": "model.list", "arguments": {}}],
            details={"needed_bytes": bytes_needed, "free_bytes": free},
        )


def disk_error(error: OSError, folder: Path) -> AimaError:
    """What a failed write means for the caller."""
    if error.errno in FULL:
        free = shutil.disk_usage(folder).free
        return ResourceExhausted(
            f"the disk of {folder} is full ({free} bytes free): {error.strerror}",
            hint="delete a model, or move the home to a larger disk",
            next=[{"unit": "model.list", "arguments": {}}],
            details={"free_bytes": free},
        )
    return InvalidArgument(f"{error.filename or folder}: {error.strerror or error}")
