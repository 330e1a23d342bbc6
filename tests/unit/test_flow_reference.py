"""References and expressions: what they lead to, what they refuse, and that what is written is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from aima_lib.errors import InvalidArgument
from aima_lib.flows.expression import Node, Operation, evaluate, events, parse, read_by
from aima_lib.flows.reference import ABSENT, Each, Literal, Reference, follow, pieces_of, references, resolve
from tests.unit.test_flow_document import VALUES

SCOPE: dict[str, Any] = {
    "input": {"audio": "aGk=", "n": 3, "empty": None, "files": [{"path": "a"}, {"path": "b"}], "a b": {"${": 1}, "order": [1, 0, 7]},
    "steps": {"chat": {"content": "hello", "usage": None}, "each": [{"content": "x"}, None, {"content": "z"}], "skipped": None},
    "item": {"path": "p", "key": "model"},
    "run": {"id": "run-1"},
    "config": {"model": "tiny"},
}
PRIMARY = {"chat": "content", "each": "content", "skipped": "content"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${input.n}", 3),
        ("${input.empty}", None),
        ("${input.files}", [{"path": "a"}, {"path": "b"}]),
        ("${input.files[0].path}", "a"),
        ("${input.files[-1]['path']}", "b"),
        ("${input.files[*].path}", ["a", "b"]),
        ('${ input["a b"]["${"] }', 1),
        ("${steps.chat.content}", "hello"),
        ("${steps.chat.response}", "hello"),
        ("${steps.each.response}", ["x", None, "z"]),
        ("${steps.each[2].response}", "z"),
        ("${steps.each[*].content}", ["x", None, "z"]),
        ("${steps.skipped}", None),
        ("${input.files[input.order[0]].path}", "b"),
        ("${input.files[input.order[*]].path}", ["b", "a", None]),
        ("${steps.each[input.order].response}", [None, "x", None]),
        ("${config[item.key]}", "tiny"),
        ("${item.path} of ${run.id} with ${config.model}", "p of run-1 with tiny"),
        ("n=${input.n}, ${input.files[0]}", 'n=3, {"path": "a"}'),
        ("${input.gone ?? input.empty ?? 'x'}", "x"),
        ("${input.gone ?? input.n ?? 'x'}", 3),
        ('<${steps.chat.usage.total ?? "no"}>', "<no>"),
        ("$${input.n} $$${input.n}", "${input.n} $${input.n}"),
        ("a $ b $$ {c}", "a $ b $$ {c}"),
        ("", ""),
    ],
)
def test_a_reference_stands_for_its_value(text: str, value: Any) -> None:
    assert resolve(text, SCOPE, PRIMARY) == value


def test_what_is_absent_is_left_out_of_an_object_and_refused_elsewhere() -> None:
    given = {"text": "x", "voice": "${input.voice}", "more": {"deep": "${steps.skipped.content}"}, "null": "${input.empty}"}
    assert resolve(given, SCOPE, PRIMARY) == {"text": "x", "more": {}, "null": None}
    for value, says in [
        ("${input.gone}", "absent"),
        (["${input.gone}"], "absent"),
        ("a ${input.gone}", "absent"),
        ("a ${input.empty}", "null"),
    ]:
        with pytest.raises(InvalidArgument, match=says) as error:
            resolve(value, SCOPE, PRIMARY)
        assert "??" in str(error.value.hint)


def test_what_a_reference_brings_is_data() -> None:
    assert resolve("${input.x}!", {"input": {"x": "${run.id}"}}) == "${run.id}!"
    assert resolve({"a": "${input.x}"}, {"input": {"x": {"b": "${run.id}"}}}) == {"a": {"b": "${run.id}"}}


def test_text_does_not_grow_without_bound() -> None:
    with pytest.raises(InvalidArgument, match="longer than"):
        resolve(["${input.x} ${input.x}"] * 20, {"input": {"x": "x" * 1_000_000}})


@pytest.mark.parametrize(
    "text",
    ["${}", "${input", "${input.}", "${input..a}", "${input[}", "${input[a]}", "${input[1.5]}", "${input[true]}", "${foo}", "${steps}", "${steps[0]}", "${steps[input.x].y}", "${input" + "[input" * 9 + "]" * 9 + "}", "${1e999}", "${'\\ud800'}", "${input.a b}", "${input.a ?? }", "${input ?? $}", "${a.b}${", "${steps.a" + ".b" * 40 + "}"],
)  # fmt: skip
def test_what_is_not_well_written_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="at character"):
        pieces_of(text)


PARTS = some.integers(-5, 5) | some.text(max_size=6) | some.just(Each())
PATHS = some.lists(PARTS, max_size=5)
ROOTS = some.sampled_from(["input", "item", "run", "config", "event"])


def references_along(paths: some.SearchStrategy[list[Any]]) -> some.SearchStrategy[Reference]:
    steps = some.builds(lambda id, path: Reference("steps", (id, *path)), some.from_regex(r"[a-z_][a-z0-9_-]{0,5}", fullmatch=True), paths)
    return steps | some.builds(lambda root, path: Reference(root, tuple(path)), ROOTS, paths)


REFERENCES = references_along(some.lists(PARTS | references_along(PATHS), max_size=5)).filter(
    lambda reference: not any("\ud800" <= c <= "\udfff" for c in str(reference))
)


@given(REFERENCES)
def test_a_reference_is_read_back_as_it_is_written(reference: Reference) -> None:
    every = [*reference.all()]
    assert references(f"${{{reference}}}") == every
    assert references(f"a ${{{reference} ?? 'x'}} $${{b}} ${{ {reference} }}") == [*every, *every]
    assert read_by(f"{reference} == 1 or ${{{reference}}}") == [*every, *every]


@given(VALUES, some.data())
def test_a_path_into_a_value_leads_to_what_is_there(value: Any, data: some.DataObject) -> None:
    here, path = value, []
    while isinstance(here, dict | list) and here and data.draw(some.booleans()):
        part = data.draw(some.sampled_from(sorted(here) if isinstance(here, dict) else list(range(len(here)))))
        here, path = here[part], [*path, part]
    reference = Reference("input", tuple(path))
    assert follow(reference, {"input": value}) == here
    assert resolve({"x": f"${{{reference}}}"}, {"input": value}) == {"x": here}
    missing = Reference("input", (*path, "no such key", 0))
    assert follow(missing, {"input": value}) is ABSENT


@given(some.text())
def test_any_text_stands_for_itself_when_it_is_escaped(text: str) -> None:
    assert resolve(text.replace("${", "$${"), SCOPE) == text


@given(some.text(alphabet="${}ab.?[]*'\" \\", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for reading in (references, parse):
        try:
            reading(text)  # type: ignore[operator]
        except InvalidArgument:
            pass


# Expressions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("input.n > 2", True),
        ("${input.n} > 2 and ${input.n} <= 3", True),
        ("input.n == 3.0", True),
        ("input.n != 3", False),
        ("true == 1", False),
        ("[1, true] == [1, 1]", False),
        ("not input.empty", True),
        ("not input.n == 4", True),
        ("input.gone", None),
        ("input.gone.further == null", True),
        ("input.gone ?? 7", 7),
        ("default(input.empty, input.n)", 3),
        ("input.gone ?? input.empty ?? 'x' == 'x'", True),
        ("'a' in input.files[*].path", True),
        ("'z' not in input.files[*].path", True),
        ("'el' in steps.chat.response", True),
        ("'content' in steps.chat", True),
        ("input.n in [1, 2, 3]", True),
        ("(1 < 2) == ('a' < 'b')", True),
        ("false or 0 or '' or [] or input.empty", False),
        ("1 and 'x'", True),
        ("not not 0", False),
        ("true or input.n < 'x'", True),  # what need not be asked is not
        ('event("model.pulled") and event.payload.size > 1', False),
        ("-1 < 0 and 1e2 == 100", True),
        ("\"it's\" == 'it\\'s'", True),
    ],
)
def test_an_expression_has_its_value(text: str, value: Any) -> None:
    assert evaluate(text, SCOPE, PRIMARY) == value
    assert type(evaluate(text, SCOPE, PRIMARY)) is type(value)


def test_a_trigger_asks_for_its_events() -> None:
    text = 'event("model.pulled") and event.payload.size > 1 or event("run.ended")'
    assert events(text) == {"model.pulled", "run.ended"}
    assert evaluate(text, {"event": {"type": "model.pulled", "payload": {"size": 2}}}) is True
    assert evaluate(text, {"event": {"type": "model.pulled", "payload": {"size": 1}}}) is False


@pytest.mark.parametrize("text", ["input.n < 'a'", "null < 1", "true < false", "input.empty > 0", "1 in 2", "1 in 'a'", "'a' in null"])
def test_what_has_no_order_is_an_error(text: str) -> None:
    with pytest.raises(InvalidArgument):
        evaluate(text, SCOPE)


@pytest.mark.parametrize(
    "text",
    ["", " ", "1 2", "(1", "1)", "1 <", "< 1", "1 < 2 < 3", "a", "input.", "not", "1 and", "default(1)", "default(1, 2, 3)", "event(x)", "event(1)", "event()", "[1, ]", "[1 2]", "${1", "${1 == 1}", "1 = 1", "1 & 1", "__import__('os')", "input.x()", "lambda: 1", "1 if 1 else 2", "'open", "x" * 5000, "(" * 40 + "1" + ")" * 40, "not " * 40 + "1"],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


LITERALS = some.builds(Literal, some.none() | some.booleans() | some.integers(-99, 99) | some.text(max_size=5).filter(str.isprintable))
NODES: some.SearchStrategy[Node] = some.recursive(
    LITERALS | REFERENCES,
    lambda below: some.one_of(
        some.builds(Operation, some.sampled_from(["or", "and", "??"]), some.lists(below, min_size=2, max_size=3).map(tuple)),
        some.builds(Operation, some.just("not"), some.tuples(below)),
        some.builds(Operation, some.just("list"), some.lists(below, max_size=3).map(tuple)),
        some.builds(Operation, some.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]), some.tuples(below, below)),
    ),
    max_leaves=8,
)


def written(node: Node) -> str:
    """An expression as text, every part in parentheses."""
    if isinstance(node, Reference):
        return str(node)
    if isinstance(node, Literal):
        return json.dumps(node.value, ensure_ascii=False)
    if node.sign == "list":
        return f"[{', '.join(map(written, node.parts))}]"
    parts = [f"({written(part)})" for part in node.parts]
    return f"not {parts[0]}" if node.sign == "not" else f" {node.sign} ".join(parts)


@given(NODES)
def test_an_expression_is_read_back_as_it_is_written(node: Node) -> None:
    assert parse(written(node)) == node


@given(NODES.filter(lambda node: "<" not in written(node) and ">" not in written(node) and " in " not in written(node)))
def test_an_expression_without_order_always_has_a_value(node: Node) -> None:
    value = evaluate(written(node), SCOPE, PRIMARY)
    json.dumps(value)
    assert evaluate(f"not ({written(node)})", SCOPE, PRIMARY) is not bool(value)
