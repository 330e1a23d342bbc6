"""A process that hosts a home and does nothing else: `python host_process.py HOME`. Says "up" once it does."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # an installed AIMA comes before the checkout's

from aima_lib.infra.home import Home

home = Home(sys.argv[1])
home.make()
home.acquire("test")
print("up", flush=True)
signal.pause()
