"""faster-whisper: speech to text by CTranslate2, in the worker."""

from __future__ import annotations

from aima_lib.engines.base import Install
from aima_lib.engines.worked import Worked


class FasterWhisper(Worked):
    """Whisper models as CTranslate2 has them: a folder with model.bin, config.json and a tokenizer."""

    name = "faster-whisper"
    title = "faster-whisper"
    formats: tuple[str, ...] = ("ctranslate2",)
    types: tuple[str, ...] = ("asr",)
    tasks: tuple[str, ...] = ("transcribe",)
    needs: tuple[str, ...] = ("model.bin",)
    devices: tuple[str, ...] = ("cpu", "gpu")
    install = Install(("faster-whisper==1.2.1",), ("faster_whisper",), 520 << 20)
    module = "whisper"
    extra = "asr"
