"""Files that were made to hurt whoever reads them: each is refused, soon, in little memory, with a word on what is wrong."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_lib.errors import InvalidArgument, Unavailable
from aima_lib.infra import apart
from aima_lib.infra.apart import MEMORY_BYTES, read_apart
from aima_lib.infra.facts import Part, read
from tests.conftest import ROOT
from tests.heads import gguf, hostile, safetensors, sound_onnx, tensor

EXAMPLES = int(os.environ.get("AIMA_FUZZ_EXAMPLES", "150"))
FUZZING = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CORPUS = hostile()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float, int, int, Any]]:
    """Every file of the corpus, read apart: seconds, CPU seconds, peak bytes, exit code, answer."""
    folder, lines = tmp_path_factory.mktemp("hostile"), []
    for one in CORPUS:
        path = folder / f"{one.name}.{one.format}"
        one.write(path)
        lines.append(json.dumps([one.format, str(path)]))
    told = subprocess.run(
        [sys.executable, "-m", "tests.apart_ledger"], input="\n".join(lines), capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {one.name: json.loads(line) for one, line in zip(CORPUS, told.stdout.splitlines(), strict=True)}


def test_the_corpus_is_wide() -> None:
    assert len(CORPUS) >= 40
    assert {one.format for one in CORPUS} == {"gguf", "safetensors", "onnx"}


@pytest.mark.parametrize("name", [one.name for one in CORPUS])
def test_it_is_refused_within_a_second_and_64_mib(ledger: dict[str, tuple[float, float, int, int, Any]], name: str) -> None:
    _, seconds, peak, code, answer = ledger[name]
    assert seconds <= 1.0
    assert peak <= MEMORY_BYTES
    if code == 0:
        assert answer["code"] == "invalid_argument" and name in answer["message"], answer
    else:
        assert code in (-signal.SIGPROF, -signal.SIGXCPU)


@pytest.mark.parametrize("name", ["gguf-texts-to-the-limit", "safetensors-a-million-lists", "gguf-array-2-40", "onnx-a-million-fields"])
def test_the_host_says_what_was_wrong(tmp_path: Path, name: str) -> None:
    one = next(one for one in CORPUS if one.name == name)
    path = tmp_path / f"{name}.{one.format}"
    one.write(path)
    with pytest.raises(InvalidArgument, match=name) as caught:
        read_apart(one.format, [(path, path.name)])
    assert "not a usable" in str(caught.value) or "not usable" in str(caught.value)


def test_a_reader_gets_nothing_of_the_hosts_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, weights = tmp_path / "tells.py", tmp_path / "a.gguf"
    told.write_text("import json, os\nprint(json.dumps({'seen': sorted(os.environ)}))", encoding="utf-8")
    weights.write_bytes(SOUND["gguf"])
    monkeypatch.setenv("HF_TOKEN", "planted")
    monkeypatch.setattr(apart, "ARGV", (sys.executable, "-I", "-S", str(told)))
    assert set(read_apart("gguf", [(weights, weights.name)])["seen"]) <= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LC_CTYPE"}


def test_a_reader_that_cannot_run_is_nobodys_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "a.gguf"
    weights.write_bytes(SOUND["gguf"])
    monkeypatch.setattr(apart, "ARGV", (sys.executable, "-I", "-S", str(tmp_path / "absent.py")))
    with pytest.raises(Unavailable, match="did not answer"):
        read_apart("gguf", [(weights, weights.name)])


def _survives(format: str, data: bytes, name: str) -> None:
    try:
        facts = read(format, [Part(io.BytesIO(data), len(data), name)])
    except InvalidArgument as error:
        assert name in str(error)
        return
    assert len(json.dumps(facts)) < 1 << 20


def _sound_gguf() -> bytes:
    about = {"general.architecture": "gemma3", "gemma3.block_count": 6, "gemma3.attention.head_count": 4, "gemma3.embedding_length": 64,
             "gemma3.attention.head_count_kv": [1, 1, 1, 1, 1, 1], "gemma3.attention.sliding_window": 8, "gemma3.context_length": 128,
             "tokenizer.ggml.tokens": ["a", "b", "c"], "tokenizer.chat_template": "{{ tools }}", "split.count": 1}  # fmt: skip
    return gguf(about, [("token_embd.weight", (64, 3), 0, 768), ("blk.0.attn_q.weight", (64, 64), 8, 4352)])


SOUND: dict[str, bytes] = {
    "gguf": _sound_gguf(),
    "safetensors": safetensors({"__metadata__": {"format": "pt"}, "model.layers.0.w": tensor([2, 3], 0, 12)}, 12),
    "onnx": sound_onnx(),
}


@pytest.mark.parametrize("format", SOUND)
def test_what_the_fuzzing_begins_with_is_sound(format: str) -> None:
    data = SOUND[format]
    facts = read(format, [Part(io.BytesIO(data), len(data), f"model.{format}")])
    assert facts["parameters"]


@pytest.mark.parametrize("format", SOUND)
@FUZZING
@given(data=st.data())
def test_any_damage_ends_in_facts_or_in_a_refusal(format: str, data: st.DataObject) -> None:
    """Bytes changed, cut, doubled, and numbers blown up, several at once."""
    broken = bytearray(SOUND[format])
    for _ in range(data.draw(st.integers(1, 6), "changes")):
        change = data.draw(st.sampled_from(CHANGES), "change")
        change(broken, data.draw(st.integers(0, len(broken)), "where"), random.Random(data.draw(st.integers(0, 1 << 30), "seed")))
    _survives(format, bytes(broken), f"model.{format}")


@pytest.mark.parametrize("format", SOUND)
@FUZZING
@given(noise=st.binary(max_size=4096))
def test_noise_ends_in_facts_or_in_a_refusal(format: str, noise: bytes) -> None:
    _survives(format, {"gguf": b"GGUF\3\0\0\0", "safetensors": b"", "onnx": b"\x08\x09"}[format] + noise, f"model.{format}")


def _overwrite(data: bytearray, at: int, draw: random.Random) -> None:
    data[at : at + 1] = draw.randbytes(1)


def _blow_up(data: bytearray, at: int, draw: random.Random) -> None:
    width = draw.choice((1, 2, 4, 8))
    data[at : at + width] = draw.choice((0, 1, 0x7F, 0xFF, 1 << (8 * width - 1), (1 << 8 * width) - 1)).to_bytes(9, "little")[:width]


def _cut(data: bytearray, at: int, draw: random.Random) -> None:
    del data[at : at + draw.randrange(1, 64)]


def _double(data: bytearray, at: int, draw: random.Random) -> None:
    data[at:at] = data[at : at + draw.randrange(1, 64)]


CHANGES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (_overwrite, _blow_up, _cut, _double)
