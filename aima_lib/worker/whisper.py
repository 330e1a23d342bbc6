"""faster-whisper: speech to text, by CTranslate2."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aima_lib.worker.base import Alive, Spec, Wrong

RATE, MOST_SECONDS = 16_000, 4 * 3600
Part = dict[str, Any]


def load(spec: Spec) -> Whisper:
    """The model in the spec's folder."""
    return Whisper(spec)


class Whisper:
    """One model."""

    def __init__(self, spec: Spec) -> None:
        from faster_whisper import WhisperModel

        self.device = spec["device"]
        options = {"device": "cuda", "compute_type": "default"} if self.device == "gpu" else {"device": "cpu", "compute_type": "int8"}
        try:
            self._model = WhisperModel(
                str(Path(spec["path"]).parent), cpu_threads=spec["threads"], num_workers=spec["parallel"], local_files_only=True, **options
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise Wrong(f"faster-whisper cannot load it: {error}") from error

    def props(self) -> dict[str, Any]:
        """What it hears."""
        return {
            "languages": list(self._model.supported_languages),
            "multilingual": bool(self._model.model.is_multilingual),
            "modalities": {"audio": True},
        }

    def probe(self) -> None:
        """Listen to half a second of nothing."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(bytes(RATE))
        list(self.transcribe(buffer.getvalue(), {}, lambda: None))

    def transcribe(self, audio: bytes, asked: Mapping[str, Any], alive: Alive) -> Iterator[Part]:
        """The head (language, duration), then segments as they are heard."""
        language = asked.get("language") or None
        if language and language not in self._model.supported_languages:
            raise Wrong(f"this model hears {', '.join(self._model.supported_languages[:12])}, not the language that was named")
        words = asked.get("timestamps") == "word"
        segments, info = self._model.transcribe(
            samples(audio, alive), language=language, word_timestamps=words, condition_on_previous_text=False,
            initial_prompt=asked.get("prompt") or None, temperature=float(asked.get("temperature") or 0) or [0.0, 0.4, 0.8],
        )  # fmt: skip
        yield {"language": info.language, "duration": round(float(info.duration), 3)}
        for segment in segments:
            found = {"start": round(float(segment.start), 3), "end": round(float(segment.end), 3), "text": segment.text}
            if words:
                found["words"] = [
                    {"word": w.word, "start": round(float(w.start), 3), "end": round(float(w.end), 3)} for w in segment.words or ()
                ]
            yield found


def samples(audio: bytes, alive: Alive) -> Any:
    """The sound as faster-whisper wants it: decoded in pieces, so that a small file cannot become a huge one."""
    try:
        import av
        import numpy
    except ImportError:
        return _plain(audio)
    parts, count = [], 0
    try:
        with av.open(io.BytesIO(audio), mode="r", metadata_errors="ignore") as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            if not container.streams.audio:
                raise Wrong("there is no sound in it")
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray().reshape(-1))
                    count += parts[-1].size
                if count > RATE * MOST_SECONDS:
                    raise Wrong(f"it is longer than {MOST_SECONDS // 3600} hours")
                if len(parts) % 512 == 0:
                    alive()
            parts += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise Wrong("it is no sound file that ffmpeg's libraries can read") from error
    if not count:
        raise Wrong("there is no sound in it")
    return numpy.concatenate(parts).astype(numpy.float32) / 32768.0


def _plain(audio: bytes) -> io.BytesIO:
    """What can be read where ffmpeg's libraries are not."""
    try:
        with wave.open(io.BytesIO(audio)) as file:
            if file.getnframes() > file.getframerate() * MOST_SECONDS:
                raise Wrong(f"it is longer than {MOST_SECONDS // 3600} hours")
    except (wave.Error, EOFError) as error:
        raise Wrong("it is no WAV, and nothing here reads another form") from error
    return io.BytesIO(audio)
