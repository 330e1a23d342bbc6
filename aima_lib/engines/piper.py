"""Piper: text to speech by small networks, in the worker. Its package is under the GPL, so it has an environment of its own."""

from __future__ import annotations

from aima_lib.engines.base import Install
from aima_lib.engines.worked import Worked


class Piper(Worked):
    """Voices as they are published: NAME.onnx with NAME.onnx.json."""

    name = "piper"
    title = "Piper"
    formats: tuple[str, ...] = ("onnx",)
    types: tuple[str, ...] = ("tts",)
    tasks: tuple[str, ...] = ("synthesize",)
    needs: tuple[str, ...] = ("*.onnx.json",)
    install = Install(("piper-tts==1.8.0",), ("piper",), 330 << 20)
    module = "piper"
    extra = "piper"
