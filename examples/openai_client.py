"""The `openai` package against this machine: `python examples/openai_client.py [MODEL]`. Needs a host: `aima start`."""

import sys

from openai import OpenAI

from aima_lib.infra.home import Home

home = Home()
host = home.host()
if host is None or host.url is None:
    sys.exit("no host runs: `aima start`")
client = OpenAI(base_url=f"{host.url}/v1", api_key=home.key())
model = sys.argv[1] if len(sys.argv) > 1 else client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Say hello in five words."}], max_tokens=32, stream=True
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
