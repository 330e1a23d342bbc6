"""What is refused before anything runs, with its place and a suggestion; and that nothing else is."""

from __future__ import annotations

import graphlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from aima_lib.door import OWNER, Caller
from aima_lib.flows.check import check
from aima_lib.flows.document import read
from aima_lib.flows.graph import layers, rings, waits
from aima_lib.flows.inputs import input_schema
from aima_lib.registry import Registry
from tests.flows import OVERVIEW, issues, registry, step, steps

READER = Caller("reader", frozenset({"read"}))


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry(tmp_path_factory.mktemp("schemas"))


def said(units: Registry, source: Any, caller: Caller = OWNER, **others: Any) -> list[tuple[str, str]]:
    return [(issue.path, issue.message) for issue in issues(units, source, caller, **{name: read(other) for name, other in others.items()})]


def test_the_overviews_document_is_right_as_it_stands(units: Registry) -> None:
    assert issues(units, OVERVIEW) == []
    schema = input_schema(read(OVERVIEW), units)
    assert (schema["required"], schema["additionalProperties"], schema["properties"]["audio"]["type"]) == (["audio"], False, "string")


@pytest.mark.parametrize(
    ("old", "new", "path", "place", "says", "suggestion"),
    [
        ("inference.chat", "inference.chatt", "steps[1].type", (9, 11), "no unit 'inference.chatt'", "inference.chat"),
        ("inference.chat", "model.pulled", "steps[1].type", (9, 11), "is a event", None),
        ("transcribe.text", "transcribe.txt", "steps[1].input.messages[0].content", (14, 20), "no field 'txt'", "did you mean text?"),
        ("steps.transcribe.text", "steps.transcrib.text", "steps[1].input.messages[0].content", (14, 20), "no step 'transcrib'", "transcribe"),
        ("steps.transcribe.text", "steps.transcribe.duration_seconds", "steps[1].input.messages[0].content", (14, 20), "does not fit: it is a number", None),
        ("steps.chat.response", "steps.chat", "steps[2].input.text", (19, 13), "it is an object, and a text is wanted", "A text"),
        ("steps.chat.response", "steps.synthesize.audio", "steps[2].input.text", (19, 13), "refers to itself", None),
        ("role: user", "role: usr", "steps[1].input.messages[0].role", (13, 17), "is not one of system, user, assistant", None),
        ("role: user", "rolle: user", "steps[1].input.messages[0]", (13, 11), "role is missing", None),
        ('      model: "tts-1"\n', "", "steps[2].input", (18, 7), "model is missing", "A text"),
        ('      model: "tts-1"\n', "      model: m\n      spede: 1\n", "steps[2].input.spede", (19, 7), "means nothing", "did you mean speed?"),
        ('audio: "${input.audio}"', 'audio: "${item}"', "steps[0].input.audio", (7, 14), "there is an item only in", None),
        ('audio: "${input.audio}"', 'audio: "${event.subject}"', "steps[0].input.audio", (7, 14), "there is an event only in a trigger", None),
        ('audio: "${input.audio}"', 'audio: "${run.idd}"', "steps[0].input.audio", (7, 14), "run has no field 'idd'", "did you mean id?"),
        ('audio: "${input.audio}"', 'audio: "${config.x}"', "steps[0].input.audio", (7, 14), "config has no field 'x'", None),
        ('audio: "${input.audio}"', 'audio: "${input.audio ?? 3}"', "steps[0].input.audio", (7, 14), "3 is not string", "Sound"),
    ],
)  # fmt: skip
def test_each_fault_has_its_place_and_what_may_mend_it(
    units: Registry, old: str, new: str, path: str, place: tuple[int, int], says: str, suggestion: str | None
) -> None:
    assert old in OVERVIEW
    found = issues(units, OVERVIEW.replace(old, new, 1) if old != "inference.chat" else OVERVIEW.replace(old, new))
    told = next(issue for issue in found if issue.path == path and says in issue.message)
    assert (told.line, told.column) == place
    assert suggestion is None or suggestion in str(told.suggestion)


def test_types_are_followed_through_lists_alternatives_and_each(units: Registry) -> None:
    detect = step("d", "inference.detect", {"image": "x"})
    right = [
        ("inference.embed", {"input": "${steps.d.detections[*].label}"}),
        ("inference.embed", {"input": "${steps.d.detections[0].label}"}),
        ("inference.embed", {"input": ["a", "seen: ${steps.d.detections}"]}),
        ("math.add", {"a": 1, "b": "${steps.d.detections[0].confidence}"}),  # a number may be whole
        ("any.thing", {"x": {"y": ["${steps.d}"]}}),
    ]
    wrong = [
        ("inference.embed", {"input": "${steps.d.detections}"}, "input", "of each of its items: it is an object"),
        ("inference.embed", {"input": "${steps.d.detections[*].confidence}"}, "input", "it is a number, and a text"),
        ("inference.embed", {"input": ["${steps.d.detections[0].confidence}"]}, "input[0]", "it is a number, and a text"),
        ("math.add", {"a": "${steps.d.detections[0].label}"}, "a", "it is a text, and a whole number"),
        ("math.add", {"a": "1 ${run.id}"}, "a", "this is a text with references"),
        ("math.add", {"a": "${run.id}"}, "a", "it is a text"),
        ("math.add", {"a": 1.5}, "a", "1.5 is not integer"),
        ("any.thing", {"x": "${steps.d.detections.label}"}, "x", "is a list, and has no field 'label'"),
        ("any.thing", {"x": "${steps.d[0]}"}, "x", "is an object, and no list"),
        ("any.thing", {"x": "${steps.d.response}"}, "x", "names no main field"),
    ]
    for type, arguments in right:
        assert said(units, steps(detect, step("s", type, arguments))) == []
    for type, arguments, path, says in wrong:
        ((at, message),) = said(units, steps(detect, step("s", type, arguments)))
        assert at == f"steps[1].input.{path}"
        assert says in message


def test_a_place_that_another_reference_says_is_followed(units: Registry) -> None:
    detect, count = step("d", "inference.detect", {"image": "x"}), step("n", input={"a": 1})
    schema = {
        "properties": {"places": {"type": "array", "items": {"type": "integer"}}, "key": {"type": "string"}, "on": {"type": "boolean"}}
    }

    def one(text: str, type: str = "inference.embed", key: str = "input") -> list[tuple[str, str]]:
        return said(units, steps(detect, count, step("s", type, {key: text}), input=schema))

    assert one("${steps.d.detections[steps.n.sum].label}") == []
    assert one("${steps.d.detections[input.places].label}") == []
    assert one("${steps.d.detections[input.places[0]].label}") == []
    assert one("${steps.d[input.key]}") == []
    assert "no field 'labels'" in one("${steps.d.detections[steps.n.sum].labels}")[0][1]
    assert "it is a number" in one("${steps.d.detections[steps.n.sum].confidence}")[0][1]
    assert "it is a number" in one("${steps.d.detections[input.places].confidence}")[0][1]
    assert "true or false, and no place" in one("${steps.d.detections[input.on].label}")[0][1]
    assert "no step 'm'" in one("${steps.d.detections[steps.m.sum].label}")[0][1]
    assert read(steps(step("s", input={"a": "${steps.d.detections[steps.n.sum].label}"}))).steps[0].needs == {"d", "n"}


def test_enumerations_are_compared(units: Registry) -> None:
    made = step("s", "inference.synthesize", {"model": "m", "text": "x"})
    again = {"model": "m", "text": "x", "format": "${steps.s.format}"}
    assert said(units, steps(made, step("t", "inference.synthesize", again))) == []  # both know wav
    schema = {"properties": {"format": {"enum": ["ogg", "opus"]}}}
    ((path, message),) = said(units, steps(step("t", "inference.synthesize", {**again, "format": "${input.format}"}), input=schema))
    assert path == "steps[0].input.format"
    assert "ogg, opus" in message
    assert "mp3, wav" in message


def test_the_pipelines_own_input_schema_is_held_to(units: Registry) -> None:
    schema = {
        "type": "object",
        "required": ["n"],
        "properties": {"n": {"type": "integer", "maximum": 3}, "o": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
    assert said(units, steps(step("a", input={"a": "${input.n}"}), input=schema)) == []
    for text, says in [("${input.o.x}", "it is a text"), ("${input.m}", "input has no field 'm'"), ("${input.o}", "it is an object")]:
        ((_, message),) = said(units, steps(step("a", input={"a": text}), input=schema))
        assert says in message
    assert said(units, steps(step("a", input={"a": "${input.m}"}), input=schema | {"additionalProperties": True})) == []
    for broken in [{"properties": {"n": {"type": "int"}}}, {"properties": {"n": {"$ref": "http://127.0.0.1:9/x"}}}]:
        assert said(units, steps(step("a"), input=broken))


def test_inputs_are_inferred_from_where_they_stand(units: Registry) -> None:
    pipeline = read(
        steps(
            step(
                "a",
                "inference.synthesize",
                {"model": "${input.model}", "text": "Say ${input.text}", "format": "${input.format}", "speed": "${input.speed ?? 1}"},
            ),
            step("b", "any.thing", {"x": "${item}"}, for_each="${input.files}", **{"if": "input.wanted"}),
            step("c", "math.add", {"a": "${input.n}", "b": "${input.n}"}),
            step("d", "any.thing", {"x": "${input.deep.x}"}),
        )
    )
    schema = input_schema(pipeline, units)
    assert set(schema["required"]) == {"model", "text", "files", "n"}
    assert {name: spec.get("type") for name, spec in schema["properties"].items()} == {
        "model": "string", "text": None, "format": "string", "speed": "number", "files": "array", "wanted": None, "n": "integer", "deep": None,
    }  # fmt: skip
    assert input_schema(read(steps(step("a", "any.thing", {"x": "${input}"}))), units)["additionalProperties"] is True


def test_for_each_has_items_and_gives_a_list(units: Registry) -> None:
    each = step("e", "inference.detect", {"image": "${item}"}, for_each=["a", "b"])
    assert (
        said(units, steps(each, step("s", "any.thing", {"x": "${steps.e[*].detections[0].label}", "y": "${steps.e[0].detections}"}))) == []
    )
    assert "it is a whole number" in said(units, steps(each | {"for_each": [1, 2]}))[0][1]
    assert (
        "is a list, and has no field 'detections'" in said(units, steps(each, step("s", "any.thing", {"x": "${steps.e.detections}"})))[0][1]
    )
    assert "and a list is wanted" in said(units, steps(step("a"), each | {"for_each": "${steps.a.sum}"}))[0][1]
    deep = step("t", "math.add", {"a": "${item.label}"}, for_each={"items": "${steps.e[0].detections}", "max_parallel": 2})
    assert said(units, steps(each, deep)) == [
        ("steps[1].input.a", "${item.label} does not fit: it is a text, and a whole number is wanted")
    ]


def test_conditions_are_looked_at(units: Registry) -> None:
    def condition(text: str) -> list[tuple[str, str]]:
        return said(units, steps(step("d", "inference.detect", {"image": "x"}), step("b", **{"if": text})))

    assert condition("steps.d.detections and steps.d.detections[0].confidence > 0.5") == []
    assert "no field 'detection'" in condition("steps.d.detection")[0][1]
    assert "two numbers have an order" in condition("steps.d.detections > 1")[0][1]
    assert "two numbers have an order" in condition("not (steps.d.detections[0].label < 1)")[0][1]
    assert "in a trigger" in condition('event("model.pulled")')[0][1]
    assert "refers to itself" in condition("steps.b.sum")[0][1]
    assert "there is an item only in" in condition("item")[0][1]


def test_scopes_secrets_approvals_and_what_no_pipeline_does(units: Registry) -> None:
    assert said(units, OVERVIEW, READER) == [("steps[1].type", "reader may not use inference.chat")]
    assert "needs" in str(issues(units, OVERVIEW, READER)[0].suggestion)
    delete = step("x", "model.delete", {"model_id": "m"})
    assert "nobody is asked" in said(units, steps(delete))[0][1]
    assert said(units, steps(delete | {"approval": True})) == []
    undone = step("x", compensate={"type": "model.delete", "input": {"model_id": "m"}})
    assert said(units, steps(undone))[0][0] == "steps[0].compensate.type"
    assert "takes a secret" in said(units, steps(step("x", "secret.put", {"value": "v"})))[0][1]
    assert "cannot approve" in said(units, steps(step("x", "approval.approve", {"id": "v"})))[0][1]


def test_stand_ins_and_what_undoes_a_step(units: Registry) -> None:
    assert said(units, steps(step("a", on_error="b"), step("b"), step("c", input={"a": "${steps.a.sum}"}))) == []
    wrong = [
        (steps(step("a", on_error="bb"), step("b")), "no step 'bb'"),
        (steps(step("a", on_error="a")), "stands in for itself"),
        (steps(step("a", on_error="b"), step("b", input={"a": "${steps.a.sum}"})), "refers to what a gives"),
        (steps(step("a", on_error="c"), step("b", on_error="c"), step("c")), "already"),
        (
            steps(step("a", on_error="b"), step("b", "inference.detect", {"image": "x"}), step("c", input={"a": "${steps.a.sum}"})),
            "when b stands in for a",
        ),
        (steps(step("a", on_error="b"), step("b", depends_on="c"), step("c", depends_on="a")), "wait for each other"),
        (steps(step("a", compensate={"type": "math.add", "input": {"a": "${steps.a.summ}"}})), "no field 'summ'"),
        (steps(step("a", compensate={"type": "math.ad"})), "no unit 'math.ad'"),
    ]
    for source, says in wrong:
        found = said(units, source)
        assert len(found) == 1
        assert says in found[0][1]
    assert said(units, steps(step("a", compensate={"type": "math.add", "input": {"a": "${steps.a.sum}"}}))) == []
    each = step("a", for_each=[1], compensate={"type": "math.add", "input": {"a": "${steps.a.sum}", "b": "${item}"}})
    assert said(units, steps(each)) == []


def test_what_starts_runs_gives_them_their_input(units: Registry) -> None:
    def starts(**config: Any) -> list[tuple[str, str]]:
        return said(units, steps(step("a", input={"a": "${input.n}"}), config=config))

    assert (
        starts(
            schedule={"cron": "0 3 * * *", "input": {"n": 1}},
            triggers=[{"when": 'event("model.pulled")', "input": {"n": "${event.payload.size_bytes}"}}],
        )
        == []
    )
    assert starts(schedule={"cron": "0 3 * * *"}) == [("config.schedule.input", "n is missing")]
    assert starts(schedule={"cron": "0 3 * * *", "input": {"n": "x"}}) == [("config.schedule.input.n", '"x" is not integer')]
    for trigger, says in [
        ({"when": 'event("model.pulld")', "input": {"n": 1}}, "no event 'model.pulld'"),
        ({"when": "true", "input": {"n": 1}}, "names no event"),
        ({"when": 'event("model.pulled") and event.payload.size', "input": {"n": 1}}, "no field 'size'"),
        ({"when": 'event("model.pulled") and steps.a.sum', "input": {"n": 1}}, "has only the event"),
        ({"when": 'event("model.pulled")', "input": {"n": "${event.subject}"}}, "a text or null"),
        ({"when": 'event("model.pulled")'}, "n is missing"),
    ]:
        ((_, message),) = starts(triggers=[trigger])
        assert says in message


def test_pipelines_in_pipelines(units: Registry) -> None:
    def runs(id: str, **given: Any) -> dict[str, Any]:
        return step("r", "pipeline.run", {"pipeline_id": id, **given})

    leaf = steps(step("a", input={"a": "${input.n}"})) | {"name": "leaf"}
    two, three = (
        steps(runs(inside, input={"n": 1}) if inside == "leaf" else runs(inside)) | {"name": name}
        for name, inside in [("two", "leaf"), ("three", "two")]
    )
    assert said(units, two, leaf=leaf) == []
    assert said(units, three, leaf=leaf, two=two) == []
    assert "3 are allowed" in said(units, steps(runs("three")), leaf=leaf, two=two, three=three)[0][1]
    assert "no pipeline 'leaff'" in said(units, steps(runs("leaff")), leaf=leaf)[0][1]
    assert "comes back to itself: test → test" in said(units, steps(runs("test")))[0][1]
    assert "comes back" in said(units, steps(runs("other")), other=steps(runs("test")))[0][1]
    assert said(units, steps(runs("leaf", input={"n": "x"})), leaf=leaf) == [("steps[0].input.input.n", '"x" is not integer')]
    assert said(units, steps(runs("leaf", input={"m": 1, "n": 1})), leaf=leaf) == [("steps[0].input.input.m", "'m' means nothing here")]
    assert said(units, steps(runs("${input.which}"))) == []  # known only when it runs
    chat = steps(step("c", "inference.chat", {"model": "m", "messages": [{"role": "user", "content": "x"}]}))
    assert "may not do what chat does" in said(units, steps(runs("chat")), READER, chat=chat)[0][1]


# Order


@some.composite
def graphs(draw: some.DrawFn) -> list[tuple[int, set[int]]]:
    """Steps by number, in any order, each with those it waits for: rings and all."""
    count = draw(some.integers(1, 12))
    needs = [draw(some.sets(some.integers(0, count - 1), max_size=3)) - {place} for place in range(count)]
    return draw(some.permutations(list(enumerate(needs))))


def document(graph: list[tuple[int, set[int]]]) -> dict[str, Any]:
    """Those steps; of each pair one waits by reference, the next by depends_on."""
    made = []
    for number, needs in graph:
        first, rest = sorted(needs)[:1], sorted(needs)[1:]
        made.append(
            step(f"s{number}", input={"a": f"${{steps.s{first[0]}.sum}}" if first else number}, depends_on=[f"s{need}" for need in rest])
        )
    return steps(*made)


@given(graph=graphs())
def test_a_pipeline_is_refused_exactly_when_its_steps_go_in_rings(units: Registry, graph: list[tuple[int, set[int]]]) -> None:
    source = document(graph)
    pipeline = read(source)
    assert {step.id: set(step.needs) for step in pipeline.steps} == {
        f"s{number}": {f"s{need}" for need in needs} for number, needs in graph
    }
    order = waits(pipeline)
    try:
        list(graphlib.TopologicalSorter(order).static_order())
        turns = False
    except graphlib.CycleError:
        turns = True
    found = check(pipeline, units, OWNER, lambda id: None)
    assert bool(found) == turns
    assert all("wait for each other" in issue.message for issue in found)
    for ring in rings(order):
        assert all(following in order[id] for id, following in zip(ring, [*ring[1:], ring[0]], strict=True))
    rounds = layers(order)
    at = {id: place for place, ids in enumerate(rounds) for id in ids}
    assert turns or set(at) == set(order)
    assert all(at[need] < place for id, place in at.items() for need in order[id])
    assert all(place == 0 or any(at[need] == place - 1 for need in order[id]) for id, place in at.items())  # none waits for nothing


GIVEN = {"1": True, "${steps.s0.sum}": True, "${input.n}": True, "${input.t}": False, "${steps.s0.summ}": False, "${steps.none.sum}": False}
GIVEN |= {
    "x ${steps.s0.sum}": False,
    "${steps.text.response}": False,
    "${input.n ?? 1}": True,
    "${input.n ?? 'x'}": False,
    "${item}": False,
}


@given(chosen=some.lists(some.sampled_from(sorted(GIVEN)), min_size=1, max_size=6))
def test_a_pipeline_is_refused_exactly_where_an_argument_must_be_wrong(units: Registry, chosen: list[str]) -> None:
    schema = {"properties": {"n": {"type": "integer"}, "t": {"type": "string"}}}
    made = [step(f"s{place + 1}", input={"a": 1 if text == "1" else text}) for place, text in enumerate(chosen)]
    text = step("text", "inference.transcribe", {"model": "m", "audio": "x"})
    found = issues(units, steps(*made, step("s0"), text, input=schema))
    assert {issue.path for issue in found} == {f"steps[{place}].input.a" for place, text in enumerate(chosen) if not GIVEN[text]}


def test_the_whole_registry_is_taken(tmp_path: Path) -> None:
    """Every unit that there is can be a step's, or it is said why not."""
    everything = Registry.described()
    for unit in everything.of("command", "query"):
        example = next(example for example in unit.definition["examples"] if example.get("error") != "invalid_argument")
        found = check(
            read(steps(step("s", unit.name, example["input"], approval=True))),
            everything,
            Caller("all", frozenset({"admin", "exec"})),
            lambda id: None,
        )
        assert all("is no step" in issue.message or "there is no pipeline" in issue.message for issue in found), unit.name
