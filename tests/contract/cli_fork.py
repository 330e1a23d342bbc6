"""Runs `aima` command lines in forks of itself. Reads one JSON order a line: {argv, stdin, stdout, stderr}; answers with the exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback

import aima_lib.attached
import aima_lib.registry  # noqa: F401
import aima_mcp.faces.cli.call
import aima_mcp.faces.cli.render  # noqa: F401
from aima_mcp.main import main


def run(order: dict[str, object]) -> int:
    """Run one command line here and return its exit code."""
    for descriptor, stream in enumerate(("stdin", "stdout", "stderr")):
        mode = os.O_RDONLY if stream == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(str(order[stream]), mode, 0o600), descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # the one before has read ahead
    try:
        main(order["argv"])  # type: ignore[arg-type]
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(run(json.loads(line)))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
