"""A pipeline built in Python, without a host: its document as JSON, and its drawing in Mermaid. Usage: flow.py MODEL"""

import json
import sys

from aima_lib import Aima
from aima_lib.flows.diagram import mermaid

model = sys.argv[1] if len(sys.argv) > 1 else "llama3.2"

flow = Aima.flow("two_opinions", description="Ask twice, and let the model choose.", max_parallel=2)
asked = [
    flow.inference.chat(id=mood, model=model, messages=[{"role": "user", "content": f"As an {mood}: {flow.input.question}"}])
    for mood in ("optimist", "pessimist")
]
answers = "\n\n".join(str(each.response) for each in asked)
chosen = flow.inference.chat(id="chosen", model=model, messages=[{"role": "user", "content": f"Which is better, and why?\n\n{answers}"}])
flow.output(answer=chosen.response)

print(json.dumps(flow.document, indent=2))
print(mermaid(flow.pipeline))
