"""Files that a caller names: opened beneath folders that the owner named, and from then on known by their descriptor alone.

The kernel holds a path beneath its root (openat2); where it cannot, each component is opened by itself and links are resolved here. Either
way nothing is looked at first and opened by name later, so what is swapped in between gains nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from aima_lib.errors import FailedPrecondition, InvalidArgument, PermissionDenied

OPENAT2, RESOLVE = 437, 0x02 | 0x08  # the same number on every architecture but alpha; RESOLVE_NO_MAGICLINKS and RESOLVE_BENEATH
FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # no pipe makes it wait
MOST_LINKS, TRIES = 40, 64
Descend = Callable[[int, str], int]


class Absent(InvalidArgument):
    """There is no such file beneath the roots."""


@dataclass(slots=True)
class Opened:
    """An open file or folder. `path` is how it was asked for, and only to be shown or recorded."""

    path: Path
    descriptor: int
    roots: Roots

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(os.fstat(self.descriptor).st_mode)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def file(self) -> Path:
        """A path to this very file, whatever lies at `path` by now; good until it is closed."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)  # where /dev/fd shares the position
        return Path(f"/proc/self/fd/{self.descriptor}" if sys.platform == "linux" else f"/dev/fd/{self.descriptor}")

    def names(self) -> list[str]:
        """What a folder holds, sorted."""
        return sorted(os.listdir(self.descriptor))

    def within(self, name: str) -> Opened:
        """A file of this folder."""
        return self.roots.open(str(self.path / name))

    def beside(self, name: str) -> Opened:
        """A file of the folder that holds this one."""
        return self.roots.open(str(self.path.with_name(name)))

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)


class Roots:
    """The folders of `[files] roots`, and one of AIMA's own. `descend` opens a path beneath a folder; the best way here if not given.

    Raises:
        InvalidArgument: a root is no absolute path.
    """

    def __init__(self, named: Mapping[str, str], own: Path, descend: Descend | None = None) -> None:
        self._names, self._descend = sorted(named), descend
        self._folders = [own]
        for name, text in named.items():
            folder = Path(text).expanduser()
            if not folder.is_absolute():
                raise InvalidArgument(f"[files] roots: {name} is {text!r}, which is no absolute path", hint="begin it with / or ~")
            self._folders.append(folder)

    def open(self, path: str) -> Opened:
        """Open a file or folder.

        Raises:
            PermissionDenied: it is beneath no root, or leads out of it; whether anything is there is not told.
            Absent: there is none.
        """
        try:
            given = Path(os.path.normpath(Path(path).expanduser().absolute()))
            for folder, rest in self._ways(given):
                if (descriptor := self._beneath(folder, rest)) is not None:
                    return self._checked(Opened(given, descriptor, self))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise _absent(path) from error
            raise InvalidArgument(f"{path}: {error.strerror}") from error
        except (ValueError, RuntimeError) as error:  # a NUL, or the home of nobody
            raise InvalidArgument(f"{path!r} is not a path") from error
        known = ", ".join(self._names) or "none"
        hint = f"[files] roots in config.toml names the folders that may be read, now {known}: the owner adds one, or put the file there"
        raise PermissionDenied(f"{path} is not beneath a folder that files may be read from", hint=hint)

    def _ways(self, given: Path) -> Iterator[tuple[Path, str]]:
        """Root and path beneath it: as given, and for links that the root itself forbids, as it is without them."""
        bases = dict.fromkeys(base for folder in self._folders for base in (folder, Path(os.path.realpath(folder))))
        yield from ((base, str(given.relative_to(base))) for base in bases if given.is_relative_to(base))
        try:
            real = Path(os.path.realpath(given))
        except OSError:  # it changes while it is read
            return
        yield from ((base, str(real.relative_to(base))) for base in bases if real.is_relative_to(base))

    def _beneath(self, folder: Path, rest: str) -> int | None:
        """The descriptor, or None when the path leads out."""
        descend = self._descend or best()
        top = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return descend(top, rest)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                return None
            raise
        finally:
            os.close(top)

    def _checked(self, opened: Opened) -> Opened:
        mode = os.fstat(opened.descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return opened
        os.close(opened.descriptor)
        raise _absent(str(opened.path))


def _absent(path: str) -> Absent:
    return Absent(f"{path} is not a file or a folder", hint="give the path as the machine that hosts AIMA sees it")


@cache
def best() -> Descend:
    """The kernel's way where there is one.

    Raises:
        FailedPrecondition: this system cannot open a file relative to a folder at all.
    """
    if os.open not in os.supports_dir_fd:
        raise FailedPrecondition("files can be taken in on Linux and macOS only", hint="run AIMA under WSL")
    here = os.open("/", os.O_RDONLY)
    try:
        os.close(by_kernel(here, "."))
    except OSError:  # ENOSYS, or EPERM of a container's filter
        return by_walking
    finally:
        os.close(here)
    return by_kernel


def by_kernel(top: int, path: str) -> int:
    """openat2: EXDEV when the path leads out of `top`."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    how = (ctypes.c_uint64 * 3)(FLAGS, 0, RESOLVE)
    for _ in range(TRIES):
        found = call(ctypes.c_long(OPENAT2), ctypes.c_long(top), ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how), ctypes.c_size_t(24))
        if found >= 0:
            return int(found)
        if ctypes.get_errno() != errno.EAGAIN:  # something above was renamed meanwhile: it cannot tell whether it is still beneath
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def by_walking(top: int, path: str) -> int:
    """The same, component by component."""
    held, rest, links = [top], deque(path.split("/")), 0
    try:
        while rest:
            part = rest.popleft()
            if part == "..":
                if len(held) == 1:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                os.close(held.pop())
            elif part not in ("", "."):
                try:
                    held.append(os.open(part, FLAGS | os.O_NOFOLLOW, dir_fd=held[-1]))
                except OSError as error:
                    links += 1
                    if error.errno not in (errno.ELOOP, errno.EMLINK) or links > MOST_LINKS:
                        raise
                    rest.extendleft(reversed(_target(part, held[-1])))
        return held.pop() if len(held) > 1 else os.open(".", FLAGS, dir_fd=top)
    finally:
        for descriptor in held[1:]:
            os.close(descriptor)


def _target(link: str, folder: int) -> list[str]:
    try:
        target = os.readlink(link, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return [link]  # it is no link any more: once again
        raise
    if target.startswith("/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), link)
    return target.split("/")
