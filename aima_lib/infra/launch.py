"""What stands between an engine's adapter and a launcher: how one engine is started, as data."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

FOLDER, PORT, HOST = "{folder}", "{port}", "{host}"
# What an engine may see of the host's environment.
PASSED = frozenset(
    {
        "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME",
        "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
    }
)  # fmt: skip
PASSED_PREFIXES = ("LC_", "CUDA_", "HIP_", "ROCR_", "GGML_", "OMP_", "GOMP_", "KMP_", "MKL_", "VK_")
SECRETIVE = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything needed to start an engine and know that it is up.

    In `argv`, `{folder}` is the instance's private folder, `{port}` the port the launcher chose and `{host}` the address to listen at.
    `files` are written into that folder, readable by the owner alone, before the start; `secrets` too, each the content of the secret of
    that name. With `announces` the engine chooses its port and says so in ready.json. `probe` is a path whose POST computes a little,
    where the tasks have none that does. `discreet` are patterns of lines of its output that repeat a request: of those the log keeps what
    comes before the pattern.
    `last_words` are seconds that its end may take beyond what its stop was given, where it has something of its own to end.
    """

    argv: tuple[str, ...]
    alias: str
    tasks: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    announces: bool = False
    probe: str | None = None
    discreet: tuple[str, ...] = ()
    last_words: float = 0.0


def environment() -> dict[str, str]:
    """What every child that runs an engine gets of the host's environment: no key, token or password, whatever its prefix."""
    return {name: value for name, value in os.environ.items() if _is_passed(name)}


def _is_passed(name: str) -> bool:
    return name in PASSED or (name.startswith(PASSED_PREFIXES) and SECRETIVE.search(name) is None)
