"""espeak-ng: text to speech by rules, in a hundred languages. The voices are the program's own."""

from __future__ import annotations

import array
import subprocess
import sys
from typing import Any

from aima_lib.worker.base import Alive, Sound, Spec, Wrong

WORDS_A_MINUTE, SLOWEST, FASTEST = 175, 80, 450
SPEAK_SECONDS = 300


def load(spec: Spec) -> Espeak:
    """The program at the spec's `binary`."""
    return Espeak(spec)


class Espeak:
    """One program; a process for each request."""

    device = "cpu"

    def __init__(self, spec: Spec) -> None:
        self._binary = spec["binary"]
        self._voices = {row["id"]: row for row in self._listed()}
        if not self._voices:
            raise Wrong(f"{self._binary} --voices lists none")
        self._voice = "en-us" if "en-us" in self._voices else next(iter(self._voices))

    def _listed(self) -> list[dict[str, Any]]:
        """Pty Language Age/Gender VoiceName File: a line each, by column."""
        try:
            done = subprocess.run([self._binary, "--voices"], capture_output=True, text=True, errors="replace", timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Wrong(f"{self._binary} --voices did not answer: {error}") from error
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        return [
            {"id": row[1], "name": row[3].replace("_", " "), "language": row[1], "gender": {"M": "male", "F": "female"}.get(row[2][-1:])}
            for row in rows
            if len(row) >= 5
        ]

    def _known(self, voice: str) -> str:
        if voice not in self._voices:
            raise Wrong(f"there is no such voice; there are {', '.join(list(self._voices)[:20])} and more")
        return voice

    def props(self) -> dict[str, Any]:
        """Its voices."""
        return {"voices": list(self._voices.values()), "voice": self._voice}

    def probe(self) -> None:
        """Say one letter."""
        self.synthesize("a", None, 1.0, lambda: None)

    def synthesize(self, text: str, voice: str | None, speed: float, alive: Alive) -> Sound:
        """Text as speech."""
        chosen, pace = self._known(voice or self._voice), round(WORDS_A_MINUTE * speed)
        alive()
        command = [self._binary, "-v", chosen, "-s", str(min(max(pace, SLOWEST), FASTEST)), "--stdin", "--stdout"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SPEAK_SECONDS, check=False)
        head, _, data = done.stdout.partition(b"data")
        if done.returncode or len(head) < 28 or len(data) < 6:
            raise Wrong(f"espeak-ng gave no sound (status {done.returncode})")
        pcm = data[4:]  # its header says no size: it does not know one when it begins
        samples = array.array("h", pcm[: len(pcm) // 2 * 2])
        if sys.byteorder == "big":
            samples.byteswap()
        return Sound(samples.tobytes(), int.from_bytes(head[24:28], "little"), chosen)
