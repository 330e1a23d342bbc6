"""Hosts that are there to be killed: `python kill_host.py HOME`. Each line that it reads is answered by a fresh process that hosts the home.

They are forked, so that a host is up in a moment, and says in one line of JSON who it is and which engines it has: at once, when it has taken
up what it found, and again when all that is wanted is ready.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

import anyio

from aima_lib import runtime, units
from aima_lib.errors import FailedPrecondition
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry


def say(gateway: Gateway, what: str) -> None:
    pids = {each["id"]: each["pid"] for each in gateway.services.store.find("instance") if each["status"] == "ready"}
    print(json.dumps({"said": what, "pid": os.getpid(), "pids": pids}), flush=True)


def take(home: Home) -> None:
    """Wait until the lock of one that was killed is free, as whoever starts hosts anew tries again."""
    for _ in range(200):
        try:
            home.acquire("test")
            home.release()
            return
        except FailedPrecondition:
            time.sleep(0.01)


async def live(home: Home, registry: Registry, parent: int) -> None:
    take(home)
    async with runtime.host(home, registry=registry) as gateway:
        say(gateway, "up")
        while not all(each["ready_replicas"] == 2 for each in gateway.services.serving.list()[0]):
            await anyio.sleep(0.01)
        say(gateway, "ready")
        while os.getppid() == parent:  # whoever is left over when the tests end, ends too
            await anyio.sleep(0.5)


def main() -> None:
    home, registry = Home(sys.argv[1]), Registry.load(units)
    parent = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for _ in sys.stdin:
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            anyio.run(live, home, registry, parent)
            os._exit(0)
        print(json.dumps({"said": "forked", "pid": pid}), flush=True)


if __name__ == "__main__":
    main()
