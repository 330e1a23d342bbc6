"""Sound as files: WAV by the standard library, the rest by ffmpeg where there is one."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from functools import cache

from aima_lib.worker.base import Sound, Wrong

MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "mp3": "audio/mpeg", "flac": "audio/flac", "opus": "audio/ogg", "aac": "audio/aac"}
CONTAINERS = {"mp3": "mp3", "flac": "flac", "opus": "ogg", "aac": "adts"}
ENCODE_SECONDS = 120


@cache
def formats() -> tuple[str, ...]:
    """What `encoded` can make here."""
    return tuple(MEDIA_TYPES) if shutil.which("ffmpeg") else ("wav", "pcm")


def encoded(spoken: Sound, form: str) -> bytes:
    """Speech as a file of that format."""
    if form == "pcm":
        return spoken.samples
    if form == "wav":
        return wav(spoken)
    codec = ["-c:a", "libopus"] if form == "opus" else []
    command = ["ffmpeg", "-v", "error", "-i", "pipe:0", *codec, "-f", CONTAINERS[form], "pipe:1"]
    done = subprocess.run(command, input=wav(spoken), capture_output=True, timeout=ENCODE_SECONDS, check=False)
    if done.returncode or not done.stdout:
        raise Wrong(f"ffmpeg could not make {form} of it")
    return done.stdout


def wav(spoken: Sound) -> bytes:
    """Speech as RIFF WAVE."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(spoken.sample_rate)
        file.writeframes(spoken.samples)
    return buffer.getvalue()
