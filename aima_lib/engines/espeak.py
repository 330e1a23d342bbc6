"""espeak-ng: text to speech by rules. A program of the system's; its voices are its own, so there are no weights to fetch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from aima_lib.engines.base import Builtin, Found
from aima_lib.engines.worked import Worked
from aima_lib.infra.environments import Environments
from aima_lib.infra.launch import environment

ASK_SECONDS = 10


class Espeak(Worked):
    """The binary on PATH, or the one the configuration names."""

    name = "espeak-ng"
    title = "espeak-ng"
    formats: tuple[str, ...] = ("builtin",)
    types: tuple[str, ...] = ("tts",)
    tasks: tuple[str, ...] = ("synthesize",)
    builtin = Builtin("espeak-ng", "tts", license="gpl-3.0-or-later")
    module = "espeak"

    def __init__(self, environments: Environments, configured: str | None) -> None:
        super().__init__(environments)
        self._configured = configured

    @property
    def binary(self) -> str | None:
        """The binary that would be started."""
        return shutil.which(self._configured or "espeak-ng")

    def find(self) -> Found:
        if self.binary is None:
            named = f"engines.espeak_ng is {self._configured}, which cannot be run"
            where = named if self._configured else "there is no espeak-ng on PATH"
            return Found(None, f"{where}; the system's package espeak-ng has it (apt install espeak-ng)")
        try:
            answer = subprocess.run(
                [self.binary, "--version"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_SECONDS,
                env=environment(),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Found(None, f"{self.binary} --version did not answer: {error}")
        words = answer.stdout.partition(":")[2].split()
        return Found(words[0] if words else None)

    def more(self, model: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"binary": self.binary or "espeak-ng"}
