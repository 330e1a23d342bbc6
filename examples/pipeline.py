"""A pipeline, made and run: `python examples/pipeline.py [MODEL]`.

Three steps: one looks at the machine, one has a model answer about each topic, both at the same time; the third has it sum up. The run
is on record step by step: kill the host meanwhile, and the next one goes on from there.
"""

import sys

from aima_lib import Aima, AimaError

DEFINITION = """
name: topics
description: Says something about each topic, then sums up.
input:
  type: object
  required: [model, topics]
  properties:
    model: {type: string}
    topics: {type: array, items: {type: string}}
steps:
  - id: machine
    type: system.info
  - id: said
    type: inference.chat
    for_each: {items: "${input.topics}", max_parallel: 2}
    retry: {attempts: 2, backoff_seconds: 0.5}
    input:
      model: "${input.model}"
      messages: [{role: user, content: "Say one thing about ${item}."}]
      max_tokens: 24
  - id: sum
    type: inference.chat
    input:
      model: "${input.model}"
      messages: [{role: user, content: "Sum up: ${steps.said.response}"}]
      max_tokens: 24
output:
  said: "${steps.said.response}"
  sum: "${steps.sum.response}"
  version: "${steps.machine.version}"
"""

with Aima() as aima:
    ready = [model["id"] for model in aima.inference.models()["models"] if model["status"] == "ready"]
    model = sys.argv[1] if len(sys.argv) > 1 else next(iter(ready), None)
    if model is None:
        sys.exit("no model is served yet: run `aima quickstart`")
    wrong = aima.pipeline.validate(definition=DEFINITION.replace("inference.chat", "inference.chatter", 1))
    print("\n".join(f"line {issue['line']}: {issue['message']}; {issue['suggestion']}" for issue in wrong["issues"]))
    aima.pipeline.create(definition=DEFINITION)
    print(aima.pipeline.get(pipeline_id="topics")["diagram"])
    run = aima.stream("pipeline.run", pipeline_id="topics", input={"model": model, "topics": ["rain", "snow"]})
    for item in run:
        print(", ".join(f"{part['id']} {part['status']}" for part in item.get("parts", ())))
    print(run.result["output"])
    try:
        aima.pipeline.run(pipeline_id="topics", input={"model": "no-such-model", "topics": ["rain"]})
    except AimaError as error:
        print(f"{error.code}: {error}")
