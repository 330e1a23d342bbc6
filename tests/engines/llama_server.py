"""A small llama-server: takes the flags AIMA gives it and serves with the embedded llama.cpp. Anything it does not know is an error."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import xllamacpp as llama


def main() -> None:
    flags = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    for name in ("--model", "--alias", "--host", "--api-key-file"):
        flags.add_argument(name, required=True)
    for name in (
        "--port",
        "--ctx-size",
        "--parallel",
        "--threads",
        "--batch-size",
        "--ubatch-size",
        "--cache-ram",
        "--n-gpu-layers",
        "--seed",
    ):
        flags.add_argument(name, type=int)
    for name in ("--flash-attn", "--pooling", "--chat-template-file"):
        flags.add_argument(name)
    for name in ("--jinja", "--no-slots", "--embeddings"):
        flags.add_argument(name, action="store_true")
    given = flags.parse_args()
    wanted = llama.CommonParams()
    wanted.model.path, wanted.model_alias = given.model, {given.alias}
    wanted.hostnames, wanted.port = [given.host], given.port
    wanted.api_keys = Path(given.api_key_file).read_text(encoding="utf-8").split()
    wanted.n_ctx, wanted.n_parallel, wanted.n_batch, wanted.n_ubatch = given.ctx_size, given.parallel, given.batch_size, given.ubatch_size
    wanted.cpuparams.n_threads, wanted.cache_ram_mib, wanted.embedding = given.threads, given.cache_ram, given.embeddings
    if given.embeddings:
        wanted.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    try:
        server = llama.Server(wanted)
    except RuntimeError as error:
        sys.exit(f"E {error}")
    print(f"main: server is listening on {server.listening_address}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container is not ended by it otherwise
    signal.pause()


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("version: 7 (small)", file=sys.stderr)
    elif sys.argv[1:] == ["--list-devices"]:
        print("Available devices:")
    else:
        main()
