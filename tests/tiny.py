"""A llama of one megabyte with random weights that llama.cpp really loads: `python -m tests.tiny OUT`.

It answers with plain English words in no sensible order, never emits a broken character, and never ends by itself (a reply runs
to `max_tokens` or to the end of the context), so tests of streams and of cancellation have something to cut.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 64, 3, 4, 2, 256, 1024
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = """
    a about after all also an and any as at back be because but by can come could day do each even find first for from get give
    go good great hand have he her here him his home how if in into is it just know land large last learn life light like line
    little live long look made make man many may me more most move much must my name need never new no not now number of off old
    on one only or other our out over own part people place plant point read right river same say sea see she should show side
    small so some sound still story such take tell than that the their them then there these they thing think this three time to
    tree turn two under up us use very wait walk want was water way we well went were what when where which while who why will
    with word work world would write year you young your
""".split()  # noqa: SIM905 - as a list it would be two hundred lines
CHARACTERS = [chr(code) for code in range(0x21, 0x7F)]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny_gguf(path: str | Path, *, seed: int = 0, license: str = "cc0-1.0") -> Path:
    """Write the model. The same seed always gives the same bytes."""
    target = Path(path)
    writer = gguf.GGUFWriter(str(target), "llama")
    _describe(writer, license)
    liking = _vocabulary(writer)
    _weights(writer, liking, np.random.Generator(np.random.PCG64(seed)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _describe(writer: gguf.GGUFWriter, license: str) -> None:
    writer.add_name("AIMA tiny")
    writer.add_license(license)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_chat_template(TEMPLATE)


def _vocabulary(writer: gguf.GGUFWriter) -> NDArray[np.float32]:
    """Write a byte-complete SentencePiece vocabulary; return how much the model should like to say each token."""
    kinds = gguf.TokenType
    rows = [("<unk>", kinds.UNKNOWN, -1.0)]
    rows += [(name, kinds.CONTROL, -1.0) for name in CONTROL]
    rows += [(f"<0x{byte:02X}>", kinds.BYTE, -1.0) for byte in range(256)]
    rows += [("\u2581", kinds.NORMAL, -1.0)]
    rows += [(character, kinds.NORMAL, -0.2) for character in CHARACTERS]
    rows += [(f"\u2581{word}", kinds.NORMAL, 1.0) for word in WORDS]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in rows])
    writer.add_token_types([kind for _, kind, _ in rows])
    writer.add_token_scores([-float(place) for place in range(len(rows))])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)  # a generation prompt that begins with a space breaks grammars
    return np.array([liking for _, _, liking in rows], dtype=np.float32)


def _weights(writer: gguf.GGUFWriter, liking: NDArray[np.float32], random: np.random.Generator) -> None:
    """Random matrices, but for one channel that is constant in every embedding and turns into a bias of each token's logit."""

    def matrix(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    ones, head = np.ones(WIDTH, dtype=np.float32), WIDTH // HEADS
    embedding = matrix(len(liking), WIDTH, 1.0)
    embedding[:, 0] = 4.0
    output = matrix(len(liking), WIDTH, 0.5)
    output[:, 0] = liking * 6.0
    writer.add_tensor("token_embd.weight", embedding)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        heads = (KV_HEADS * head, WIDTH)
        shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": heads, "attn_v": heads, "attn_output": (WIDTH, WIDTH),
                  "ffn_gate": (FEED_FORWARD, WIDTH), "ffn_up": (FEED_FORWARD, WIDTH), "ffn_down": (WIDTH, FEED_FORWARD)}  # fmt: skip
        for name, (rows, columns) in shapes.items():
            weight = matrix(rows, columns, 0.7 / columns**0.5)
            if rows == WIDTH and name in ("attn_output", "ffn_down"):
                weight[0, :] = 0.0  # nothing may write into the constant channel
            writer.add_tensor(f"{block}.{name}.weight", weight)
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.tiny OUT")
    written = write_tiny_gguf(sys.argv[1])
    print(f"{written}: {written.stat().st_size} bytes")
