"""The child of `apart`: `python -I -S apart_child.py`, a job on stdin, facts or an error on stdout.

The job names open files by their descriptors; nothing is opened here but the modules that read them, and those before the limits fall.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    job: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    sys.path.insert(0, job["root"])
    from aima_lib.errors import AimaError
    from aima_lib.infra.facts import Part, read

    parts = [Part(os.fdopen(number, "rb", buffering=1 << 16), os.fstat(number).st_size, name) for number, name in job["files"]]
    limit(job["cpu_seconds"], job["memory_bytes"])
    try:
        said = read(job["format"], parts)
    except AimaError as error:
        said = {"code": error.code, "message": str(error)[:2000], "hint": error.hint}
    except MemoryError:
        said = {"code": "invalid_argument", "message": refusal(parts[0].name, job["memory_bytes"]), "hint": "download it again"}
    except RecursionError:
        said = {"code": "invalid_argument", "message": f"{parts[0].name} nests too deep", "hint": "download it again"}
    sys.stdout.write(json.dumps(said))


def refusal(name: str, memory_bytes: int) -> str:
    return f"{name} is not usable: reading its head takes more than {memory_bytes >> 20} MiB of memory"


def limit(cpu_seconds: float, memory_bytes: int) -> None:
    """Let nothing that follows take more: the kernel ends the process, or refuses it memory."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # what is mapped already counts too: let it grow by what is left of the resident limit
        with open("/proc/self/statm") as statm:
            mapped, resident = (int(number) * resource.getpagesize() for number in statm.read().split()[:2])
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes - resident,) * 2)


if __name__ == "__main__":
    main()
