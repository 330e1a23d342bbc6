"""An engine that behaves badly: its parts ignore SIGTERM, and one leaves its parent. Says "up" once all are there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1:] == ["part"]:
    if os.fork() == 0:  # an orphan: its parent, the part, ends at once
        os.setsid()
        time.sleep(600)
    os._exit(0)
subprocess.run([sys.executable, __file__, "part"], check=True)
print("up", flush=True)
time.sleep(600)
