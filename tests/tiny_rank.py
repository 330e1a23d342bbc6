"""A cross-encoder of a few kilobytes with random weights and a head for ranks, that llama.cpp really loads. Its ranks mean nothing."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, FEED_FORWARD, HEADS, CONTEXT = 32, 64, 2, 128
TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *(f"\u2581{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    *"abcdefghijklmnopqrstuvwxyz",
]


def write_tiny_rank(path: Path, *, head: bool = True) -> Path:
    """Write the model; without its head it is an encoder that can only embed."""
    writer, random = gguf.GGUFWriter(str(path), "bert"), np.random.Generator(np.random.PCG64(0))

    def add(name: str, *shape: int, ones: bool = False) -> None:
        value = np.ones(shape) if ones else random.standard_normal(shape) * 0.3
        writer.add_tensor(name, value.astype(np.float32))

    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if head else gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    add("token_embd.weight", len(TOKENS), WIDTH)
    add("position_embd.weight", CONTEXT, WIDTH)
    add("token_types.weight", 2, WIDTH)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        add(f"{name}.weight", WIDTH, ones=True)
        add(f"{name}.bias", WIDTH)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_up": (FEED_FORWARD, WIDTH), "ffn_down": (WIDTH, FEED_FORWARD)}
    for name, shape in shapes.items():
        add(f"blk.0.{name}.weight", *shape)
        add(f"blk.0.{name}.bias", shape[0])
    if head:
        add("cls.weight", WIDTH, WIDTH)
        add("cls.bias", WIDTH)
        add("cls.output.weight", 1, WIDTH)
        add("cls.output.bias", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
