"""The bounded reader, against the format's own library and against files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_lib.errors import InvalidArgument
from aima_lib.infra import safetensors
from aima_lib.infra.gguf import FILE_TYPES, TENSOR_TYPES, peek_head, read_head
from aima_lib.services.describe import describe
from tests.tiny import write_tiny_gguf
from tests.world import within


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def written(folder: Path, *pieces: bytes) -> Path:
    path = folder / "made.gguf"
    path.write_bytes(b"".join(pieces))
    return path


def head(version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_types_are_those_of_the_formats_library() -> None:
    for kind, (name, block, width) in TENSOR_TYPES.items():
        known = gguf.GGMLQuantizationType(kind)
        assert (known.name, *gguf.GGML_QUANT_SIZES[known]) == (name, block, width)
    for kind, name in FILE_TYPES.items():
        assert gguf.LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_").replace("_MOE", "") == name


def test_it_reads_what_the_library_reads(tiny: Path) -> None:
    ours, theirs = read_head(tiny), gguf.GGUFReader(tiny)
    assert ours.parameters == sum(int(tensor.n_elements) for tensor in theirs.tensors)
    assert ours.bytes_by_type == {"F32": sum(int(tensor.n_bytes) for tensor in theirs.tensors)}
    assert ours.lengths["tokenizer.ggml.tokens"] == len(theirs.fields["tokenizer.ggml.tokens"].data)
    assert ours.complete


def test_a_description_has_what_the_file_says(tiny: Path) -> None:
    facts = describe("gguf", [(tiny, tiny.name)])
    assert {key: facts[key] for key in ("type", "architecture", "quantization", "context_length", "license", "capabilities")} == {
        "type": "llm",
        "architecture": "llama",
        "quantization": "F32",
        "context_length": 1024,
        "license": "cc0-1.0",
        "capabilities": ["chat", "complete"],
    }
    shape = facts["geometry"]
    assert (shape["block_count"], shape["head_count"], shape["head_count_kv"], shape["key_length"]) == (3, 4, 2, 16)


def test_an_array_of_two_to_the_forty_is_refused_at_once(tmp_path: Path) -> None:
    lie = written(tmp_path, head(pairs=1), text(b"k"), struct.pack("<IIQ", 9, 8, 1 << 40))
    assert lie.stat().st_size == 49
    with (
        within(0.05),
        pytest.raises(InvalidArgument, match=r"at byte 49: the length of k is 1099511627776, more than a file of 49 bytes can hold"),
    ):
        read_head(lie)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([b""], "at byte 0: the magic needs 4 bytes"),
        ([b"PK\x03\x04" + bytes(60)], "at byte 0: it does not begin with"),
        ([head(version=99), bytes(64)], "at byte 4: version 99"),
        ([b"GGUF" + struct.pack(">I", 3), bytes(64)], "big-endian"),
        ([head(tensors=1 << 60), bytes(64)], "the number of tensors"),
        ([head(pairs=1 << 60), bytes(64)], "the number of metadata keys"),
        ([head(pairs=1), struct.pack("<Q", 1 << 62), bytes(64)], "a metadata key"),
        ([head(pairs=1), text(b"k"), struct.pack("<I", 77), bytes(64)], "unknown type 77"),
        ([head(pairs=1), text(b"k"), struct.pack("<IIQ", 9, 9, 1), struct.pack("<IQ", 9, 1), bytes(64)], "nests arrays"),
        ([head(pairs=1), text(b"\xff\xfe"), bytes(64)], "is not UTF-8"),
        ([head(tensors=1), text(b"t"), struct.pack("<I", 9), bytes(64)], "9 dimensions"),
        ([head(tensors=1), text(b"t"), struct.pack("<IQIQ", 1, 1 << 40, 0, 0), bytes(64)], "tensor t ends at byte"),
    ],
)
def test_a_lie_is_named_with_its_offset(tmp_path: Path, pieces: list[bytes], said: str) -> None:
    with pytest.raises(InvalidArgument, match=r"made\.gguf .* at byte \d+") as caught:
        read_head(written(tmp_path, *pieces))
    assert said in str(caught.value) and "PK" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    for length in [*range(0, 4096, 97), *range(4096, len(whole), 40_009), len(whole) - 32]:
        with pytest.raises(InvalidArgument):
            read_head(written(tmp_path, whole[:length]))


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 12_000), value=st.binary(min_size=1, max_size=16))
def test_any_damage_ends_in_a_head_or_in_a_refusal(tiny: Path, tmp_path: Path, where: int, value: bytes) -> None:
    broken = bytearray(tiny.read_bytes())
    broken[where : where + len(value)] = value
    path = written(tmp_path, bytes(broken))
    try:
        read_head(path)
    except InvalidArgument as error:
        assert "at byte" in str(error)


def test_the_first_bytes_tell_the_geometry(tiny: Path) -> None:
    with tiny.open("rb") as stream:
        found = peek_head(stream, 2048, tiny.stat().st_size, tiny.name)
    assert not found.complete
    assert found.of_architecture("block_count") == 3


def count(path: Path) -> dict[str, int]:
    with path.open("rb") as stream:
        return safetensors.read_head(stream, path.stat().st_size, path.name).elements


def test_safetensors_are_counted_and_refused_when_cut(tmp_path: Path) -> None:
    body = b'{"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(body)) + body + bytes(12))
    assert count(path) == {"BF16": 6}
    path.write_bytes(struct.pack("<Q", len(body)) + body + bytes(5))
    with pytest.raises(InvalidArgument, match="cut short"):
        count(path)
    path.write_bytes(struct.pack("<Q", 1 << 50) + body)
    with pytest.raises(InvalidArgument, match="at byte 0"):
        count(path)
