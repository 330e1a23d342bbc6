"""Documents that mean harm: refused, or kept as text, each within 200 ms of processor time, and all within 64 MB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aima_lib.door import OWNER
from aima_lib.errors import InvalidArgument
from aima_lib.flows.check import check
from aima_lib.flows.diagram import mermaid
from aima_lib.flows.document import read
from aima_lib.registry import Registry
from tests.flows import registry, step, steps

ROOT = Path(__file__).parents[2]
MILLISECONDS, MEGABYTES = 200, 64
ONE = "name: x\nsteps:\n- id: a\n  type: any.thing\n"


def nested(depth: int) -> dict[str, Any]:
    """A schema of two alternatives, each of two alternatives, and so on."""
    return {"anyOf": [nested(depth - 1), nested(depth - 1)], "properties": {"a": {"type": "string"}}} if depth else {"type": "string"}


def many(count: int, type: str = "any.thing", **given: Any) -> dict[str, Any]:
    return steps(*(step(f"a{place}", type, given) for place in range(count)))


def corpus() -> dict[str, Any]:
    """Documents by what they try."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{'bcdefghij'[n]}: &{'bcdefghij'[n]} [{','.join(['*' + 'abcdefghi'[n]] * 9)}]\n" for n in range(9)
    )
    return {
        "10,000 steps": "name: x\nsteps:\n" + "".join(f"- {{id: a{place}, type: b.c}}\n" for place in range(10_000)),
        "10,000 steps as JSON": {"name": "x", "steps": [{"id": f"a{place}", "type": "b.c"} for place in range(10_000)]},
        "an expression of 1 MB": ONE + "  if: " + "input.x or " * 100_000 + "1\n",
        "an expression of 1 MB as JSON": steps(step("a", **{"if": "input.x or " * 100_000 + "1"})),
        "fifty expressions of 4 KB": steps(*(step(f"a{place}", **{"if": "input.x or " * 370 + "1"}) for place in range(50))),
        "sixteen expressions of 4 KB": steps(*(step(f"a{place}", **{"if": "input.x or " * 370 + "1"}) for place in range(16))),
        "2,000 parentheses": steps(step("a", **{"if": "(" * 2000 + "1" + ")" * 2000})),
        "1,000 nots": steps(step("a", **{"if": "not " * 1000 + "1"})),
        "an alias bomb": bomb,
        "a merge bomb": "a: &a {x: 1}\nb: {<<: *a, <<: *a}\n",
        "an object of Python": "name: !!python/object/apply:os.system ['touch /tmp/pwned']\n",
        "a local tag": "name: !exec ls\n",
        "100,000 brackets": "[" * 100_000,
        "50,000 braces": "{a: " * 50_000,
        "JSON of 100,000 brackets": '{"a":' + "[" * 100_000,
        "a key twice": "name: x\nname: y\n",
        "200 unknown units": steps(*(step(f"a{place}", "inference.chatx" + "y" * 40 + str(place)) for place in range(200))),
        "1,800 unknown steps": steps(*(step(f"a{p}", "any.thing", {f"k{q}": f"${{steps.zzzzzzzzz{p}_{q}.x}}" for q in range(9)}) for p in range(200))),
        "1,800 unknown fields": steps(step("d", "inference.detect", {"image": "x"}), *(step(f"a{p}", "any.thing", {f"k{q}": f"${{steps.d.zzzzz{p}_{q}}}" for q in range(9)}) for p in range(199))),
        "a ring of 200": steps(*(step(f"a{p}", input={"a": f"${{steps.a{(p + 1) % 200}.sum}}"}) for p in range(200))),
        "everybody waits for everybody": steps(*(step(f"a{p}", "any.thing", {}, depends_on=[f"a{q}" for q in range(45)]) for p in range(200))),
        "a ring of stand-ins": steps(*(step(f"a{p}", on_error=f"a{(p + 1) % 200}") for p in range(200))),
        "references to itself": steps(step("a", input={"a": "${steps.a.sum}"}, depends_on="a", on_error="a")),
        "20,000 references in one text": many(1, x="${input.x}" * 20_000),
        "85,000 escapes": many(1, x="$${" * 85_000),
        "a text that never ends": many(1, x='${"' + "\\\\" * 100_000),
        "alternatives in alternatives": many(200, x="${input.q}") | {"input": {"properties": {"q": nested(7)}}},
        "32 alternatives, 200 times": many(200, "inference.embed", input="${input.q}") | {"input": {"properties": {"q": nested(4)}}},
        "9,000 inputs": many(1) | {"input": {"type": "object", "properties": {f"q{place}": {} for place in range(9000)}}},
        "9,000 arguments": many(1, "math.add", **{f"q{place}": 1 for place in range(9000)}),
        "9,000 keys": {"name": "x", "steps": [{"id": "a", "type": "a.b", **{f"k{place}": 1 for place in range(9000)}}]},
        "a schema from elsewhere": many(1) | {"input": {"properties": {"q": {"$ref": "http://127.0.0.1:9/x"}}}},
        "a schema of itself": many(1) | {"input": {"properties": {"q": {"$ref": "#"}}}},
        "a pattern that goes back": many(1) | {"input": {"properties": {"q": {"type": "string", "pattern": "(a+)+$"}}}, "config": {"schedule": {"cron": "* * * * *", "input": {"q": "a" * 5000 + "b"}}}},
        "a number of 200,000 digits": "name: " + "9" * 200_000,
        "a number of 200,000 digits as JSON": many(1, x=10**200_000),
        "a lone surrogate": many(1, x="\ud800"),
        "every byte": bytes(range(256)) * 500,
        "UTF-16": "name: x".encode("utf-16"),
        "tabs": "\t" * 200_000, "colons": ": " * 120_000, "dashes": "- " * 120_000, "questions": "? " * 120_000, "anchors": "&a " * 80_000,
        "directives": "%YAML 1.2\n" * 20_000, "lines": "\n" * 250_000, "comments": "#\n" * 120_000, "one long word": "name: " + "a b " * 60_000,
        "folded": "name: >\n" + "  a\n" * 60_000, "quoted": 'name: "' + "\\x41" * 60_000 + '"',
    }  # fmt: skip


def verdict(source: Any, units: Registry) -> str:
    try:
        pipeline = read(source)
    except InvalidArgument as error:
        assert len(str(error)) < 1000
        assert len(json.dumps(error.as_dict())) < 100_000
        return "refused"
    found = check(pipeline, units, OWNER, lambda id: None)
    assert len(json.dumps([issue.as_dict() for issue in found])) < 100_000
    return f"{len(found)} issues" if found else "right"


@pytest.mark.parametrize("name", corpus())
def test_a_hostile_document_costs_little(name: str, tmp_path: Path) -> None:
    units, source, spent = registry(tmp_path), corpus()[name], []
    verdict(steps(step("a")), units)
    for _ in range(3):
        before = time.process_time()
        said = verdict(source, units)
        spent.append((time.process_time() - before) * 1000)
    assert min(spent) < MILLISECONDS, f"{name}: {spent} ms, {said}"
    assert not Path("/tmp/pwned").exists()
    if not name.startswith(("sixteen", "32")):
        assert said != "right"


def test_all_of_them_stay_within_64_megabytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_flow_hostile", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEGABYTES * 1024, f"{done.stdout} KB"


def test_a_drawing_of_a_hostile_pipeline_holds_only_its_words() -> None:
    ugly = '"]; click s0 "javascript:alert(1)" %% <img src=x onerror=y> `x` #quot; end\n  s9'
    drawn = mermaid(
        read(steps(step("a", "any.thing", {"x": f"${{input[{json.dumps(ugly)}]}}"}, **{"if": f"input.x == {json.dumps(ugly)}"})))
    )
    for sign in ("<img", "javascript:alert(1)", '"];', "`", "\n  s9"):
        assert sign not in drawn
    assert all(line.startswith(("flowchart TD", "  s0", "  input", "  output")) for line in drawn.splitlines())


def main(folder: str) -> None:
    """Print by how many kilobytes the whole corpus makes this process grow at its highest."""
    units, sources = registry(Path(folder)), corpus()
    verdict(steps(step("a")), units)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in sources.values():
        verdict(source, units)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    main(sys.argv[1])
