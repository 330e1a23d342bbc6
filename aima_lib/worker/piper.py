"""Piper: text to speech by a VITS network in ONNX, with the JSON that came with its voice beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aima_lib.worker.base import Alive, Sound, Spec, Wrong


def load(spec: Spec) -> Piper:
    """The voice at the spec's path."""
    return Piper(spec)


class Piper:
    """One voice file; of some, several speakers."""

    device = "cpu"

    def __init__(self, spec: Spec) -> None:
        from piper import PiperVoice, SynthesisConfig

        self._settings, path = SynthesisConfig, Path(spec["path"])
        try:
            self._voice = PiperVoice.load(path, path.with_name(f"{path.name}.json"))
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise Wrong(f"piper cannot load it: {str(error)[:300]}") from error
        config = self._voice.config
        self._speakers: dict[str, int | None] = dict(config.speaker_id_map or {}) or {path.stem: None}
        self._language = str(config.espeak_voice)
        self._default = next(iter(self._speakers))
        self._known(self._default)

    def _known(self, voice: str) -> str:
        if voice not in self._speakers:
            raise Wrong(f"there is no such voice; there are {', '.join(list(self._speakers)[:20])}")
        return voice

    def props(self) -> dict[str, Any]:
        """Its speakers."""
        rows = [{"id": name, "name": name.replace("_", " "), "language": self._language, "gender": None} for name in self._speakers]
        return {"voices": rows, "voice": self._default}

    def probe(self) -> None:
        """Say one letter."""
        self.synthesize("a", None, 1.0, lambda: None)

    def synthesize(self, text: str, voice: str | None, speed: float, alive: Alive) -> Sound:
        """Text as speech, a sentence at a time."""
        chosen = self._known(voice or self._default)
        usual = float(self._voice.config.length_scale or 1.0)
        settings = self._settings(speaker_id=self._speakers[chosen], length_scale=usual / speed)
        parts, rate = [], int(self._voice.config.sample_rate)
        for chunk in self._voice.synthesize(text, settings):
            alive()
            parts.append(chunk.audio_int16_bytes)
        if not parts:
            raise Wrong("there is nothing in the text that can be said")
        return Sound(b"".join(parts), rate, chosen)
