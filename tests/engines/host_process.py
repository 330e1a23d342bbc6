"""A process that hosts a home and does nothing else: `python host_process.py HOME`. Says "up" once it does.

With `HOME waiting` it says "waiting" when all is loaded, and hosts once it has read a line: it takes the home over in no time.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

from aima_lib.infra.home import Home

home = Home(sys.argv[1])
home.make()
if "waiting" in sys.argv:
    print("waiting", flush=True)
    sys.stdin.readline()
home.acquire("test")
print("up", flush=True)
signal.pause()
