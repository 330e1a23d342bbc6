"""Kokoro: text to speech by one network with many voices, in the worker."""

from __future__ import annotations

from aima_lib.engines.base import Install
from aima_lib.engines.worked import Worked


class Kokoro(Worked):
    """A folder with the network (.onnx) and its voices (voices*.npz or voices*.bin)."""

    name = "kokoro"
    title = "Kokoro"
    formats: tuple[str, ...] = ("onnx",)
    types: tuple[str, ...] = ("tts",)
    tasks: tuple[str, ...] = ("synthesize",)
    needs: tuple[str, ...] = ("voices*.[nb][pi][zn]",)
    install = Install(("kokoro-onnx==0.6.1",), ("kokoro_onnx",), 420 << 20)
    module = "kokoro"
    extra = "kokoro"
