"""Class-conditional diffusion in ONNX: a network that tells the noise in an image, and a JSON beside it that says how it was trained.

The network takes x (images), t (times) and c (classes) and gives the noise. Sampling is DDIM with classifier-free guidance. Frames of a
video are neighbours in the space of noise, and go from one class to the next.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from aima_lib.worker.base import Alive, Picture, Spec, Wrong
from aima_lib.worker.onnx import beside, session

BATCH, ENCODE_SECONDS = 48, 300


def load(spec: Spec) -> Diffusion:
    """The network and its settings."""
    return Diffusion(spec)


class Diffusion:
    """One network."""

    def __init__(self, spec: Spec) -> None:
        import numpy

        path = beside(spec, ".json")
        if path is None:
            raise Wrong("there is no JSON beside the weights that says how it was trained")
        try:
            self._said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._classes = {word: place for place, words in enumerate(self._said["labels"]) for word in words}
            steps = int(self._said["train_steps"])
            self._width, self._height = map(int, self._said["size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Wrong(f"{path.name} does not say how the network was trained: {type(error).__name__}: {error}") from error
        self._session, self.device = session(spec)
        if {node.name for node in self._session.get_inputs()} != {"x", "t", "c"}:
            raise Wrong("the network does not take x, t and c")
        turns = numpy.cos((numpy.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = numpy.linspace(1e-4, 0.02, steps)
        self._kept = turns[1:] / turns[0] if self._said.get("schedule") == "cosine" else numpy.cumprod(1 - betas)
        self._default_steps = int(self._said.get("steps") or 25)

    def props(self) -> dict[str, Any]:
        """What it can be asked to draw."""
        return {
            "labels": [words[0] for words in self._said["labels"]],
            "size": f"{self._width}x{self._height}",
            "formats": _video_formats(),
        }

    def probe(self) -> None:
        """One step of one image."""
        self._sample([[0]], [[1.0]], self._noise(0, 1), 1, lambda: None)

    def generate_image(self, asked: Mapping[str, Any], alive: Alive) -> list[Picture]:
        """PNGs. The seed of each is the first's and its place."""
        if asked.get("negative_prompt"):
            raise Wrong("this model knows no negative prompt")
        named = self._named(str(asked["prompt"]))
        if len(named) != 1:
            raise Wrong(f"an image shows one class; the prompt names {len(named)}")
        scale, count, seed = self._scale(asked.get("size"), 1), int(asked.get("n") or 1), int(asked["seed"])
        noise = [self._noise(seed + place & 0xFFFFFFFF, 1) for place in range(count)]
        frames = self._frames([named] * count, [[1.0]] * count, noise, asked, alive)
        return [
            Picture(_png(frame, scale), "image/png", self._facts(scale, seed + place & 0xFFFFFFFF)) for place, frame in enumerate(frames)
        ]

    def generate_video(self, asked: Mapping[str, Any], alive: Alive) -> Picture:
        """A video that goes through the classes that the prompt names, in their order."""
        form = asked.get("format") or _video_formats()[0]
        if form not in _video_formats():
            raise Wrong(f"without ffmpeg where the engine runs, format can be {', '.join(_video_formats())}")
        fps, named = int(asked.get("fps") or 12), self._named(str(asked["prompt"]))
        count, seed = max(1, round(float(asked.get("seconds") or 2) * fps)), int(asked["seed"])
        first, last = self._noise(seed, 1), self._noise(seed ^ 0x5A5A5A5A, 1)
        classes, weights, noise = [], [], []
        for frame in range(count):
            where = frame / max(1, count - 1)
            left = min(int(where * (len(named) - 1)), max(0, len(named) - 2))
            share = where * (len(named) - 1) - left if len(named) > 1 else 0.0
            classes.append([named[left], named[min(left + 1, len(named) - 1)]])
            weights.append([1 - share, share])
            turn = where * math.pi / 2
            noise.append(math.cos(turn) * first + math.sin(turn) * last)
        scale = self._scale(asked.get("size"), int(self._said.get("video_scale", 1)))
        frames = self._frames(classes, weights, noise, asked, alive)
        data = _gif(frames, scale, fps) if form == "gif" else _mp4(frames, scale, fps)
        facts = {**self._facts(scale, seed), "fps": fps, "frames": count, "duration_seconds": round(count / fps, 3)}
        return Picture(data, {"gif": "image/gif", "mp4": "video/mp4"}[form], facts)

    def _frames(
        self, classes: list[list[int]], weights: list[list[float]], noise: list[Any], asked: Mapping[str, Any], alive: Alive
    ) -> list[Any]:
        import numpy

        steps = min(int(asked.get("steps") or self._default_steps), len(self._kept))
        frames: list[Any] = []
        for start in range(0, len(classes), BATCH):
            part = slice(start, start + BATCH)
            made = self._sample(classes[part], weights[part], numpy.concatenate(noise[part]), steps, alive)
            frames += [numpy.clip((image[0] + 1) * 127.5, 0, 255).round().astype(numpy.uint8) for image in made]
        return frames

    def _sample(self, classes: list[list[int]], weights: list[list[float]], noise: Any, steps: int, alive: Alive) -> Any:
        """DDIM: from noise to images, in so many of the training's steps."""
        import numpy

        kinds, shares, x = numpy.array(classes, numpy.int64), numpy.array(weights, numpy.float32), noise
        guidance = float(self._said.get("guidance", 1.0))
        times = numpy.linspace(len(self._kept) - 1, 0, steps).round().astype(int)
        for place, time in enumerate(times):
            alive()
            t: Any = numpy.full(len(x), time, numpy.int64)
            told = sum(
                self._session.run(None, {"x": x, "t": t, "c": kinds[:, k]})[0] * shares[:, k, None, None, None]
                for k in range(kinds.shape[1])
            )
            if guidance != 1.0 and "null_class" in self._said:
                free = self._session.run(None, {"x": x, "t": t, "c": numpy.full(len(x), self._said["null_class"], numpy.int64)})[0]
                told = free + guidance * (told - free)
            kept, after = self._kept[time], self._kept[times[place + 1]] if place + 1 < steps else 1.0
            clean = numpy.clip((x - math.sqrt(1 - kept) * told) / math.sqrt(kept), -1, 1)
            told = (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)
            x = (math.sqrt(after) * clean + math.sqrt(max(0.0, 1 - after)) * told).astype(numpy.float32)
        return x

    def _noise(self, seed: int, count: int) -> Any:
        import numpy

        return numpy.random.default_rng(seed).standard_normal((count, 1, self._height, self._width)).astype(numpy.float32)

    def _named(self, prompt: str) -> list[int]:
        """The classes that a prompt names, in their order."""
        found = [self._classes[word] for word in re.findall(r"[a-z]+|\d", prompt.lower()) if word in self._classes]
        if not found:
            known = ", ".join(str(words[0]) for words in self._said["labels"][:40])
            raise Wrong(f"this model draws {known} and nothing else; the prompt names none of them")
        return found[:32]

    def _scale(self, size: str | None, default: int) -> int:
        most = int(self._said.get("largest_scale", 1))
        if size is None:
            return default
        width, _, height = str(size).partition("x")
        scale = int(width) // self._width
        if not 1 <= scale <= most or (int(width), int(height)) != (self._width * scale, self._height * scale):
            sizes = f"{self._width}x{self._height} and its multiples up to {self._width * most}x{self._height * most}"
            raise Wrong(f"this model draws in {sizes}, its pixels enlarged as they are")
        return scale

    def _facts(self, scale: int, seed: int) -> dict[str, Any]:
        return {"width": self._width * scale, "height": self._height * scale, "seed": seed}


def _enlarged(frame: Any, scale: int) -> Any:
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def _png(frame: Any, scale: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_enlarged(frame, scale)).save(buffer, "PNG")
    return buffer.getvalue()


def _gif(frames: list[Any], scale: int, fps: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    first, *rest = (Image.fromarray(_enlarged(frame, scale)) for frame in frames)
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def _mp4(frames: list[Any], scale: int, fps: int) -> bytes:
    import tempfile
    from pathlib import Path

    height, width = (side * scale for side in frames[0].shape)
    with tempfile.TemporaryDirectory() as folder:  # the form wants a file that can be gone back in
        path = Path(folder, "video.mp4")
        source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
        command = ["ffmpeg", "-v", "error", *source, "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
        raw = b"".join(_enlarged(frame, scale).tobytes() for frame in frames)
        done = subprocess.run(command, input=raw, capture_output=True, timeout=ENCODE_SECONDS, check=False)
        if done.returncode:
            raise Wrong("ffmpeg could not make an mp4 of that size; a larger one may do, or gif")
        return path.read_bytes()


def _video_formats() -> list[str]:
    return ["mp4", "gif"] if shutil.which("ffmpeg") else ["gif"]
