"""Kokoro: text to speech by an 82M network in ONNX, with its voices in one .npz or .bin beside it."""

from __future__ import annotations

from typing import Any

from aima_lib.worker.base import Alive, Sound, Spec, Wrong
from aima_lib.worker.onnx import beside

LANGUAGES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "j": "ja", "p": "pt-br", "z": "cmn"}
GENDERS = {"f": "female", "m": "male"}


def load(spec: Spec) -> Kokoro:
    """The network and its voices."""
    return Kokoro(spec)


class Kokoro:
    """One network; a voice's first letter is its language, its second its gender."""

    device = "cpu"

    def __init__(self, spec: Spec) -> None:
        import kokoro_onnx

        voices = beside(spec, ".npz", ".bin")
        if voices is None:
            raise Wrong("there is no voices file (.npz or .bin) beside the weights")
        try:
            self._model = kokoro_onnx.Kokoro(spec["path"], str(voices))
            self._names = sorted(self._model.get_voices())
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise Wrong(f"kokoro-onnx cannot load it: {str(error)[:300]}") from error
        self._default = "af_heart" if "af_heart" in self._names else self._names[0]
        self._known(self._default)

    def _known(self, voice: str) -> str:
        if voice not in self._names:
            raise Wrong(f"there is no such voice; there are {', '.join(self._names[:30])}")
        return voice

    def props(self) -> dict[str, Any]:
        """Its voices."""
        rows = [
            {"id": name, "name": name[3:].capitalize() or name, "language": LANGUAGES.get(name[0]), "gender": GENDERS.get(name[1:2])}
            for name in self._names
        ]
        return {"voices": rows, "voice": self._default}

    def probe(self) -> None:
        """Say one letter."""
        self.synthesize("a", None, 1.0, lambda: None)

    def synthesize(self, text: str, voice: str | None, speed: float, alive: Alive) -> Sound:
        """Text as speech. The network knows half to twice its pace."""
        import numpy

        chosen = self._known(voice or self._default)
        if not 0.5 <= speed <= 2:
            raise Wrong("kokoro speaks at 0.5 to 2 times its pace")
        alive()
        samples, rate = self._model.create(text, voice=chosen, speed=speed, lang=LANGUAGES.get(chosen[0], "en-us"))
        whole = (numpy.clip(samples, -1, 1) * 32767).astype(numpy.int16)
        if not whole.size:
            raise Wrong("there is nothing in the text that can be said")
        return Sound(whole.tobytes(), int(rate), chosen)
