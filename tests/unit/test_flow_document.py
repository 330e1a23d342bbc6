"""Documents: strict YAML, places, what is refused and how it is told, and the way back to JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from aima_lib.errors import InvalidArgument
from aima_lib.flows.document import Call, ForEach, Pipeline, Retry, as_document, read
from aima_lib.flows.source import LONGEST, Path, parse, plain
from tests.flows import OVERVIEW, step, steps

WORDS = some.text(some.characters(min_codepoint=32, max_codepoint=126), max_size=8)
SCALARS = some.none() | some.booleans() | some.integers(-(10**20), 10**20) | some.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = some.recursive(SCALARS, lambda below: some.lists(below, max_size=4) | some.dictionaries(WORDS, below, max_size=4), max_leaves=20)


def refused(source: Any) -> list[dict[str, Any]]:
    """The issues that reading a document ends with."""
    with pytest.raises(InvalidArgument) as error:
        read(source)
    found: list[dict[str, Any]] = error.value.details["issues"]
    assert found
    assert str(error.value).count(found[0]["message"]) == 1
    return found


def test_the_overviews_document_is_read_as_it_stands() -> None:
    pipeline = read(OVERVIEW)
    assert pipeline.name == "voice_assistant"
    assert [(step.id, step.type, set(step.needs)) for step in pipeline.steps] == [
        ("transcribe", "inference.transcribe", set()),
        ("chat", "inference.chat", {"transcribe"}),
        ("synthesize", "inference.synthesize", {"chat"}),
    ]
    assert pipeline.input is None
    assert pipeline.result == {"synthesize": "${steps.synthesize}"}
    assert read(OVERVIEW.encode()) == pipeline


def test_every_key_of_a_step_is_read() -> None:
    document = """
    name: whole
    description: All there is.
    input: {type: object, properties: {files: {type: array}}}
    steps:
      - id: first
        type: any.thing
        input: {x: "${item}"}
        depends_on: other
        if: input.files and not config.quick
        for_each: {items: "${input.files}", max_parallel: 2}
        retry: {attempts: 3, backoff_seconds: 0.5, on: [unavailable]}
        timeout_seconds: 10
        on_error: spare
        on_unknown: retry
        compensate: {type: any.thing, input: {x: "${steps.first}"}}
        cache_seconds: 60
        approval: true
      - {id: other, type: any.thing, for_each: [1, 2], retry: 2, if: false}
      - {id: spare, type: any.thing}
    output: "${steps.first[*].x}"
    config: {max_parallel: 4, timeout_seconds: 60, constants: {quick: no}, schedule: {cron: 0 3 * * *, missed: once}}
    """
    pipeline = read(document)
    first, other, spare = pipeline.steps
    assert first.needs == {"other"}
    assert first.condition == "input.files and not config.quick"
    assert first.for_each == ForEach("${input.files}", 2)
    assert first.retry == Retry(3, 0.5, ("unavailable",))
    assert (first.fallback, first.on_unknown, first.timeout_seconds, first.cache_seconds, first.approval) == (
        "spare",
        "retry",
        10,
        60,
        True,
    )
    assert first.compensate == Call("any.thing", {"x": "${steps.first}"})
    assert (other.for_each, other.retry, other.condition) == (ForEach([1, 2]), Retry(2), "false")
    assert spare.fallback is None
    assert pipeline.fallbacks == {"spare": "first"}
    assert pipeline.constants == {"quick": "no"}  # text, not false
    assert read(as_document(pipeline)) == pipeline
    assert read(json.dumps(as_document(pipeline))) == pipeline


def test_what_yaml_1_1_would_change_stays_text() -> None:
    value, _ = parse("{a: no, b: on, c: 12:30:45, d: 2026-11-26, e: 1_000, f: yes, g: =, h: <<, i: 0b1, j: Off}")
    assert value == {
        "a": "no",
        "b": "on",
        "c": "12:30:45",
        "d": "2026-11-26",
        "e": "1_000",
        "f": "yes",
        "g": "=",
        "h": "<<",
        "i": "0b1",
        "j": "Off",
    }
    value, _ = parse("[1, -2, 0o17, 0x1F, 1.5, .5, 1e3, true, FALSE, null, ~, , '1', \"true\", 010]".replace(" ,", ""))
    assert value == [1, -2, 15, 31, 1.5, 0.5, 1000.0, True, False, None, None, "1", "true", 10]


@given(VALUES)
def test_json_is_read_as_what_it_is_and_every_part_has_its_place(value: Any) -> None:
    text = json.dumps({"v": value}, indent=1)
    found, places = parse(text)
    assert found == {"v": value}
    assert json.dumps(found, sort_keys=True) == json.dumps({"v": value}, sort_keys=True)  # 1 is not true, 1.0 is not 1
    lines = text.splitlines()

    def look(part: Any, path: Path) -> None:
        line, column = places.values[path]
        assert lines[line - 1][column - 1 :].startswith(json.dumps(part)[:1])
        for key, item in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            look(item, (*path, key))

    look({"v": value}, ())
    assert plain(found) == found


@pytest.mark.parametrize(
    ("source", "path", "line", "column", "says"),
    [
        ("name: a\nname: b", "name", 2, 1, "twice"),
        ("name: &x a", "name", 1, 7, "anchors and aliases"),
        ("name: *x", "name", 1, 7, "anchors and aliases"),
        ("name: !!python/object/apply:os.system [id]", "name", 1, 7, "the tag"),
        ("name: !!str a", "name", 1, 7, "the tag"),
        ("name: .inf", "name", 1, 7, "no JSON number"),
        ("name: 1e999", "name", 1, 7, "no JSON number"),
        ("--- {}\n--- {}", "", 2, 1, "second document"),
        ("? {a: b}\n: c", "", 1, 3, "a key is"),
        ("name: a\nsteps: [", "", 3, 1, ""),
        ("name: a\nsteps: []\nstep: 1", "steps", 2, 8, "shorter than 1"),
        ("name: A b\nsteps: [{id: a, type: a.b}]", "name", 1, 7, "does not match"),
        ("name: a\nsteps:\n- id: a\n  typ: b.c\n  type: b.c", "steps[0].typ", 4, 3, "means nothing"),
        ("name: a\nsteps:\n- id: a b\n  type: b.c", "steps[0].id", 3, 7, "does not match"),
        ("name: a\nsteps:\n- id: fail\n  type: b.c", "steps[0].id", 3, 7, "means something else"),
        ("name: a\nsteps:\n- {id: a, type: b.c}\n- {id: a, type: b.c}", "steps[1].id", 4, 8, "called 'a' too"),
        ("name: a\nsteps:\n- {id: a, type: b.c, input: {x: ['${stps.a}']}}", "steps[0].input.x[0]", 3, 34, "not with 'stps'"),
        ("name: a\nsteps:\n- {id: a, type: b.c, if: input.a >}", "steps[0].if", 3, 26, "a reference begins"),
        ("name: a\nsteps:\n- {id: a, type: b.c, retry: 0}", "steps[0].retry", 3, 29, "less than 1"),
        ("name: a\nsteps:\n- {id: a, type: b.c, retry: {attempts: 2, on: [timeout]}}", "steps[0].retry.on[0]", 3, 48, "not one of"),
        ("name: a\nsteps: [{id: a, type: b.c}]\nconfig: {constants: {x: '${input.y}'}}", "config", 3, 9, "hold no reference"),
        ("name: a\nsteps: [{id: a, type: b.c}]\nconfig: {triggers: [{when: 'event('}]}", "config.triggers[0].when", 3, 28, ""),
        ("- 1", "", 1, 1, "is not object"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(source: str, path: str, line: int, column: int, says: str) -> None:
    first = refused(source)[0]
    assert (first["path"], first["line"], first["column"]) == (path, line, column)
    assert says in first["message"]


def test_all_that_is_wrong_is_told_at_once_and_suggestions_with_it() -> None:
    found = refused("name: a\nsteps:\n- {id: a, tpye: b.c}\n- {id: b, type: c.d, depend_on: a, on_unknown: skip}")
    assert [(issue["path"], issue["suggestion"]) for issue in found if "means nothing" in issue["message"]] == [
        ("steps[0].tpye", "did you mean type?"),
        ("steps[1].depend_on", "did you mean depends_on?"),
    ]
    assert {issue["path"] for issue in found} == {"steps[0]", "steps[0].tpye", "steps[1].depend_on", "steps[1].on_unknown"}


def test_a_mapping_has_no_lines_and_is_held_to_the_same() -> None:
    (issue,) = refused(steps(step("a", on_eror="b")))
    assert issue == {
        "path": "steps[0].on_eror",
        "message": "'on_eror' means nothing here",
        "line": None,
        "column": None,
        "suggestion": "did you mean on_error?",
    }
    assert "is no JSON value" in refused(steps(step("a", input={"a": object()})))[0]["message"]
    assert "surrogate" in refused(steps(step("a", input={"a": "\ud800"})))[0]["message"]
    assert "is no text" in refused({"name": "a", "steps": [], 1: 2})[0]["message"]
    assert "digits" in refused(steps(step("a", input={"a": 10**5000})))[0]["message"]


def test_json_with_what_yaml_cannot_say_is_read_too() -> None:
    document = steps(step("a", "any.thing", {"x": "\U0001f600\x7f\u2028"}))
    assert read(json.dumps(document)).steps[0].input == {"x": "\U0001f600\x7f\u2028"}
    refused('{"name": "a", "name": "\\ud83d\\ude00", "steps": []}')


@given(some.text(max_size=40))
def test_any_text_is_a_document_or_refused(text: str) -> None:
    try:
        parse(text)
    except InvalidArgument as error:
        assert error.details["issues"]


def test_a_pipelines_result_is_what_nobody_waits_for() -> None:
    pipeline = read(steps(step("a", on_error="spare"), step("b", input={"a": "${steps.a.sum}"}), step("c"), step("spare")))
    assert pipeline.result == {"b": "${steps.b}", "c": "${steps.c}"}
    assert Pipeline("x", pipeline.steps, output={"x": 1}).result == {"x": 1}


def test_a_document_may_be_so_long() -> None:
    assert "characters" in refused("#" * (LONGEST + 1))[0]["message"]
