"""Engines as containers: the very launch that would be a process, with what it needs of this machine mounted read-only.

A container lives as a process engine does, and by the same means: under a keeper runs a process that stands for it (attach.py), which
starts it, hands its output to the log, tells how it ended, and ends it when the keeper says so: when it is stopped, and when the home had
no host for the grace. A host that comes back sooner adopts both. Should keeper and attach.py be killed together, the container stays until
a host of this home sees it and removes it: it carries the home's label.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aima_lib.infra.container import judged
from aima_lib.infra.launch import FOLDER, HOST, PORT, Launch
from aima_lib.infra.roots import Roots

KIND = "engine"
ATTACH = Path(__file__).with_name("attach.py")
OWN = Path(__file__).parents[1]  # AIMA's package: templates, and what starts a Python server with its key
LAST_WORDS = 8.0
# Where things lie on this machine, or whom they belong to: of no meaning in a container.
HERE = frozenset({"PATH", "HOME", "USER", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME"})


def contained(
    launch: Launch,
    settings: Mapping[str, Any],
    files: Sequence[Path],
    roots: Roots,
    daemon: Mapping[str, Any],
    *,
    folder: Path,
    port: int,
    user: str,
    gpus: Mapping[str, Any] | None,
) -> Launch:
    """The launch of what stands for the container.

    settings: of [engines.images.NAME]. files: the model's. daemon: {socket, home_id, name, generation, seconds}, for attach.py.

    Raises:
        InvalidArgument, PermissionDenied: something may not be mounted.
    """
    argv = [word.replace(FOLDER, str(folder)).replace(PORT, str(port)).replace(HOST, "0.0.0.0") for word in launch.argv]
    own = [word for word in argv[1:] if word.startswith(f"{OWN}{os.sep}") and os.path.isfile(word)]
    spec: dict[str, Any] = {
        "image": settings["image"],
        "command": argv[1:],
        "env": {name: value for name, value in launch.env.items() if name not in HERE} | {"HOME": "/tmp"},
        "mounts": [{"source": path, "target": path} for path in dict.fromkeys([*map(str, files), *own])],
        "tmpfs": ["/tmp"],
        "ports": [{"container": port, "host": port}],
        "user": user,
    }
    spec |= {"entrypoint": list(settings["program"])} if settings.get("program") else {}
    spec |= {"gpus": dict(gpus)} if gpus else {}
    spec |= {f"{what}_bytes": int(settings[f"{what}_gib"] * 2**30) for what in ("memory", "shm") if settings.get(f"{what}_gib")}
    spec = judged(spec, roots, "engines.images")
    spec["mounts"].append({"source": os.path.realpath(folder), "target": str(folder)})  # made by the start itself; the key is in it
    order = json.dumps({**daemon, "spec": spec})
    files_of_it = {**launch.files, "container.json": order}
    return replace(launch, argv=(sys.executable, "-P", str(ATTACH), FOLDER), env={}, files=files_of_it, last_words=LAST_WORDS)
