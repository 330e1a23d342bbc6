"""`python -m tests.apart_ledger`: reads lines of [format, path], has each file read apart, writes [seconds, CPU seconds, peak bytes, status, answer].

A process of its own, and a small one: the kernel counts what a child's parent had resident at the fork as the child's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from aima_lib.infra.apart import ARGV, job_of


def main() -> None:
    for line in sys.stdin:
        format, path = json.loads(line)
        with Path(path).open("rb") as stream:
            job = job_of(format, [(stream.fileno(), Path(path).name)])
            began = time.monotonic()
            child = subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[stream.fileno()], env={})
            assert child.stdin and child.stdout
            child.stdin.write(job)
            child.stdin.close()
            answer = child.stdout.read()
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        row = [time.monotonic() - began, used.ru_utime + used.ru_stime, peak, child.returncode, json.loads(answer) if answer else None]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
