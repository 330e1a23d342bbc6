"""Runs a Python server with the key of its start: `python keyed.py FOLDER MODULE [WORDS…]`.

The key goes from the folder into the server's arguments inside this process, so that no list of processes shows it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(folder: str, module: str, words: list[str]) -> None:
    key = Path(folder, "key").read_text(encoding="utf-8").strip()
    sys.argv = [module, *words, "--api-key", key]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
