"""Models' heads are read apart: in a child process that has the files and nothing else, little memory and little time.

A file that was made to hurt whoever reads it hurts the child. What comes back is JSON of the size of a record.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aima_lib.errors import BY_CODE, InvalidArgument, Unavailable

CHILD, ROOT = Path(__file__).with_name("apart_child.py"), Path(__file__).parents[2]
# Of computing, and of resident memory; a disk may be slow, so the clock is patient.
CPU_SECONDS, MEMORY_BYTES, WALL_SECONDS, LONGEST_ANSWER = 0.8, 64 << 20, 60.0, 4 << 20
ARGV = (sys.executable, "-I", "-S", str(CHILD))
Named = tuple[Path, str]


def read_apart(format: str, files: Sequence[Named]) -> dict[str, Any]:
    """`facts.read` in a child. Blocking: call it in a thread.

    Raises:
        InvalidArgument: a file is broken, or could not be read within the limits.
        OSError: a file cannot be opened.
    """
    with ExitStack() as held:
        opened = [(held.enter_context(path.open("rb")).fileno(), name) for path, name in files]
        numbers = [number for number, _ in opened]
        try:
            done = subprocess.run(
                ARGV, input=job_of(format, opened), capture_output=True, pass_fds=numbers, env=_around(), timeout=WALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _refused(files, f"it was not read within {WALL_SECONDS:g} s") from error
    return _heard(done, files)


def job_of(format: str, opened: Sequence[tuple[int, str]]) -> bytes:
    """What the child is told: which descriptors it has, what they are called, and its limits."""
    limits = {"cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES}
    return json.dumps({"format": format, "files": [[number, name] for number, name in opened], "root": str(ROOT), **limits}).encode()


def _around() -> dict[str, str]:
    """Of the host's environment what Python may need to start, and nothing else."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}


def _heard(done: subprocess.CompletedProcess[bytes], files: Sequence[Named]) -> dict[str, Any]:
    if done.returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        raise _refused(files, f"reading its head takes more than {CPU_SECONDS:g} s of computing")
    try:
        said: dict[str, Any] = json.loads(done.stdout[:LONGEST_ANSWER])
    except ValueError as error:
        if done.returncode < 0:
            raise _refused(files, f"its reader was ended by signal {-done.returncode}") from error
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise Unavailable(f"the reader of {_listed(files)} did not answer: {last}", hint="is Python's own library whole?") from error
    if "code" in said:
        raise BY_CODE[said["code"]](said["message"], hint=said["hint"])
    return said


def _refused(files: Sequence[Named], why: str) -> InvalidArgument:
    return InvalidArgument(f"{_listed(files)} is not usable: {why}", hint="no model's head needs that much: download it again")


def _listed(files: Sequence[Named]) -> str:
    names = [name for _, name in files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
