"""A program that talks to a model: `python examples/library.py [MODEL]`.

It attaches to the running host, or hosts the home itself while it runs.
"""

import sys

from aima_lib import Aima, AimaError

with Aima() as aima:
    ready = [model["id"] for model in aima.inference.models()["models"] if model["status"] == "ready"]
    model = sys.argv[1] if len(sys.argv) > 1 else next(iter(ready), None)
    if model is None:
        sys.exit("no model is served yet: run `aima quickstart`")
    chat = aima.stream("inference.chat", model=model, messages=[{"role": "user", "content": "Say hello in five words."}], max_tokens=32)
    for item in chat:
        print(item["delta"].get("content", ""), end="", flush=True)
    print(f"\n{chat.result['usage']}")
    try:
        aima.model.get(model_id="no-such-model")
    except AimaError as error:
        print(f"{error.code}: {error} ({error.hint})")
