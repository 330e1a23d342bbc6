"""AIMA: AI inference, managed by AI. The library.

    from aima_lib import Aima

    with Aima() as aima:                      # attaches to the running host, or hosts ~/.aima for its own lifetime
        aima.model.pull(repo="Qwen/Qwen2.5-0.5B-Instruct-GGUF")
        print(aima.inference.chat(model="qwen2.5", messages=[{"role": "user", "content": "Hello"}])["content"])

`Aima(url=…, key=…)` attaches to a host elsewhere.

`Aima` blocks, `AsyncAima` is awaited; both have every unit as a method, and `stream` for progress and tokens. Errors are AimaError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aima_lib import errors
from aima_lib.errors import AimaError

if TYPE_CHECKING:
    from aima_lib.client import Aima, AsyncAima

__version__ = "0.1.0"
__all__ = ["Aima", "AimaError", "AsyncAima", "errors"]


def __getattr__(name: str) -> Any:
    # The command line imports this package for its errors and schemas alone: the clients' imports wait until they are asked for.
    if name in ("Aima", "AsyncAima"):
        from aima_lib import client

        return getattr(client, name)
    raise AttributeError(f"module 'aima_lib' has no attribute {name!r}")
