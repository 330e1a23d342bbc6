"""What an agent does, without the agent: `python examples/mcp_agent.py [MODEL]` speaks MCP over stdio to `aima mcp`."""

import os
import sys
from pathlib import Path

import anyio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

HOME = {"AIMA_HOME": os.environ["AIMA_HOME"]} if "AIMA_HOME" in os.environ else None  # a client passes on little of its environment
AIMA = StdioServerParameters(command=str(Path(sys.executable).with_name("aima")), args=["mcp"], env=HOME)


async def main() -> None:
    async with Client(stdio_client(AIMA)) as client:
        print(f"{len((await client.list_tools()).tools)} tools")
        models = (await client.call_tool("inference_models", {})).structured_content["models"]
        ready = [model["id"] for model in models if model["status"] == "ready"]
        model = sys.argv[1] if len(sys.argv) > 1 else next(iter(ready), None)
        if model is None:
            sys.exit("no model is served yet: run `aima quickstart`")
        question = {"model": model, "messages": [{"role": "user", "content": "Say hello in five words."}], "max_tokens": 32}
        answer = await client.call_tool("inference_chat", question)
        print(answer.content[0].text)


anyio.run(main)
