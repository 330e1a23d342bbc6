"""Small engines and models for hosts of tests: real processes, real networks, real packages, that do next to nothing.

A voice that writes each letter of a text as a hundred and sixty equal samples, ears that read them back (a package of faster-whisper's name,
which engine.install fetches from the hub of the tests), a cross-encoder that counts shared words, and a detector that finds what is bright.
"""

from __future__ import annotations

import io
import json
import sys
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

RATE, LETTER, LOUD = 16_000, 160, 64
WORDS = ("where", "do", "cats", "sleep", "stocks", "fell", "on", "monday", "the", "sofa", "a", "b")

EARS = f'''
"""Hears what the voice of the tests says."""
import struct, wave
from types import SimpleNamespace as Said

class WhisperModel:
    supported_languages = ["en"]
    model = Said(is_multilingual=False)

    def __init__(self, path, **options):
        open(path + "/model.bin", "rb").close()

    def transcribe(self, audio, **asked):
        with wave.open(audio) as file:
            count = file.getnframes()
            samples = struct.unpack(f"<{{count}}h", file.readframes(count))
        text = "".join(chr(sample // {LOUD}) for sample in samples[::{LETTER}]).strip(chr(0))
        said = [Said(start=0.0, end=count / {RATE}, text=word + " ", words=None) for word in text.split()]
        return iter(said), Said(language="en", duration=count / {RATE})
'''

VOICE = f'''
"""espeak-ng as far as AIMA asks it."""
import struct, sys
words = sys.argv[1:]
if "--version" in words:
    print("eSpeak NG text-to-speech: 0.1  Data at: nowhere")
elif "--voices" in words:
    print("Pty Language       Age/Gender VoiceName          File                 Other Languages")
    print(" 5  en-us           --/M      English_(Toy)      gmw/en-US            ")
    print(" 5  de              --/F      German_(Toy)       gmw/de               ")
else:
    samples = [ord(letter) * {LOUD} for letter in sys.stdin.read()[:4000] for _ in range({LETTER})]
    head = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, {RATE}, {RATE} * 2, 2, 16)
    sys.stdout.buffer.write(head + b"data" + struct.pack("<I", 0xFFFFFFFF) + struct.pack(f"<{{len(samples)}}h", *samples))
'''


def spoken(text: str) -> bytes:
    """A text as the voice says it."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(b"".join((ord(letter) * LOUD).to_bytes(2, "little") * LETTER for letter in text))
    return buffer.getvalue()


def wheel_members() -> Mapping[str, bytes]:
    """What is in the wheel of the ears."""
    about = b"Metadata-Version: 2.1\nName: faster-whisper\nVersion: 1.2.1\n"
    tag = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = "faster_whisper-1.2.1.dist-info"
    files = {"faster_whisper/__init__.py": EARS.encode(), f"{info}/METADATA": about, f"{info}/WHEEL": tag}
    return files | {f"{info}/RECORD": "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()}


def write_voice(path: Path) -> Path:
    """A program that speaks."""
    script = path.with_suffix(".py")
    script.write_text(VOICE, encoding="utf-8")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def write_toys(folder: Path) -> None:
    """Models and files that examples name: hears, ranks, sees, hello.wav, square.png."""
    (folder / "hello.wav").write_bytes(spoken("hello"))
    hears = folder / "hears"
    hears.mkdir()
    (hears / "model.bin").write_bytes((6).to_bytes(4, "little") + bytes(60))
    (hears / "config.json").write_text(json.dumps({"lang_ids": [], "suppress_ids": []}), encoding="utf-8")
    write_ranks(folder / "ranks")
    write_sees(folder / "sees")
    pixels = numpy.zeros((64, 64, 3), numpy.uint8)
    pixels[24:40, 24:40] = 255
    Image.fromarray(pixels).save(folder / "square.png")


def write_tokenizer(folder: Path) -> None:
    """Words of the list, whole; a pair is two kinds of token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: place for place, word in enumerate(("[UNK]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_ranks(folder: Path) -> None:
    """A cross-encoder: twice the words that query and document share, less three."""
    folder.mkdir()
    write_tokenizer(folder)
    nodes = [
        helper.make_node("Unsqueeze", ["input_ids", "last"], ["down"]),
        helper.make_node("Unsqueeze", ["input_ids", "middle"], ["across"]),
        helper.make_node("Equal", ["down", "across"], ["same"]),
        helper.make_node("Cast", ["same"], ["pairs"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["input_ids", "separator"], ["word"]),
        helper.make_node("Cast", ["word"], ["words"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "second"], ["first"]),
        helper.make_node("Mul", ["words", "first"], ["asked"]),
        helper.make_node("Mul", ["words", "second"], ["told"]),
        helper.make_node("Unsqueeze", ["asked", "last"], ["asked_down"]),
        helper.make_node("Unsqueeze", ["told", "middle"], ["told_across"]),
        helper.make_node("Mul", ["pairs", "asked_down"], ["some"]),
        helper.make_node("Mul", ["some", "told_across"], ["shared"]),
        helper.make_node("ReduceSum", ["shared", "both"], ["count"], keepdims=0),
        helper.make_node("Mul", ["count", "two"], ["double"]),
        helper.make_node("Sub", ["double", "three"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "middle"], ["logits"]),
    ]
    fixed = {"last": numpy.array([2]), "middle": numpy.array([1]), "both": numpy.array([1, 2]), "separator": numpy.array(1)}
    fixed |= {name: numpy.array(value, numpy.float32) for name, value in (("one", 1), ("two", 2), ("three", 3))}
    inputs = {name: (TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask", "token_type_ids")}
    save(folder / "model.onnx", nodes, inputs, {"logits": (TensorProto.FLOAT, ["n", 1])}, fixed)


def write_sees(folder: Path) -> None:
    """A detector of CenterNet's kind: a centre is where a square of sixteen pixels is brightest."""
    folder.mkdir()
    (folder / "labels.txt").write_text("bright\n", encoding="utf-8")
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planes", "colours"], ["grey"], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["mean"], kernel_shape=[16, 16], strides=[4, 4], pads=[8, 8, 4, 4], count_include_pad=1),
        helper.make_node("Div", ["mean", "most"], ["keypoints"]),
        helper.make_node("Identity", ["sides"], ["wh"]),
    ]
    fixed = {"colours": numpy.array([1]), "most": numpy.array(255, numpy.float32), "sides": numpy.full((1, 4, 16, 16), 8, numpy.float32)}
    outputs = {"keypoints": (TensorProto.FLOAT, [1, 1, 16, 16]), "wh": (TensorProto.FLOAT, [1, 4, 16, 16])}
    save(folder / "model.onnx", nodes, {"images": (TensorProto.FLOAT, [1, 64, 64, 3])}, outputs, fixed)


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: Mapping[str, object], outputs: Mapping[str, object], fixed: Mapping[str, numpy.ndarray]
) -> None:
    """A network as a file; `fixed` are its constants."""
    ends = [[helper.make_tensor_value_info(name, *form) for name, form in side.items()] for side in (inputs, outputs)]  # type: ignore[misc]
    constants = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in fixed.items()]
    graph = helper.make_graph(nodes, path.stem, *ends, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, path)
