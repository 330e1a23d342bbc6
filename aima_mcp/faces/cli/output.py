"""In which form a command answers: made for people, or JSON or YAML and nothing else."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import click

Form = Literal["table", "json", "yaml"]
FORMS: tuple[Form, ...] = ("table", "json", "yaml")
# What JSON and YAML leave as it is, and a terminal obeys.
_OBEYED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
JSON_KEY, OUTPUT_KEY = "cli_json", "cli_output"


def options(taken: Sequence[str] = ()) -> Iterator[click.Option]:
    """--json and --output, which is -o alone where a property of the name `output` has the better right to it."""
    yield click.Option(["--json", JSON_KEY], is_flag=True, help="Print the output as JSON and nothing else.")
    names = ["-o", OUTPUT_KEY] if "output" in taken else ["--output", "-o", OUTPUT_KEY]
    yield click.Option(names, type=click.Choice(FORMS), help="As a table (for people), json or yaml.")


def form_in(params: dict[str, Any]) -> Form:
    """The form that was asked for."""
    named: Form | None = params.get(OUTPUT_KEY)
    if params.get(JSON_KEY) and named not in (None, "json"):
        raise click.UsageError(f"--json and --output {named} are two forms")
    return "json" if params.get(JSON_KEY) else named or "table"


def formed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command of its own the options; its function gets the `form`."""

    @functools.wraps(function)
    def with_form(*args: Any, **params: Any) -> Any:
        form = form_in(params)
        return function(*args, form=form, **{key: value for key, value in params.items() if key not in (JSON_KEY, OUTPUT_KEY)})

    with_form.__click_params__ = [*getattr(function, "__click_params__", []), *reversed(list(options()))]  # type: ignore[attr-defined]
    return with_form


def form_of(argv: Sequence[str]) -> Form:
    """The form of a command line that may not be readable: errors, too, come in it."""
    words = list(argv[: argv.index("--") if "--" in argv else len(argv)])
    for word, after in zip(words, [*words[1:], ""], strict=False):
        name, _, value = word.partition("=")
        for form in FORMS[1:]:
            if word in (f"--{form}", f"-o{form}") or (name in ("--output", "-o") and (value or after) == form):
                return form
    return "table"


def show_data(value: Any, form: Form, *, stderr: bool = False, many: bool = False) -> None:
    """Print a value as JSON or YAML. What UTF-8 cannot carry is escaped.

    many: one of many, one after the other: a line of JSON, or a document of YAML.
    """
    text = _yaml(value, many) if form == "yaml" else json.dumps(value, ensure_ascii=False, indent=_indent(many))
    text = _OBEYED.sub(_escaped, text)
    print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr if stderr else sys.stdout, flush=many)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _indent(many: bool) -> int | None:
    return 2 if sys.stdout.isatty() and not many else None


def _yaml(value: Any, many: bool) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        """Each value stands where it is used: a reader need not know of anchors."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        # PyYAML leaves 1e3 bare, since YAML 1.1 takes it for a text; YAML 1.2 takes it for a number.
        style = '"' if _OBEYED.search(data) else "'" if data[:1] in "+-.0123456789" else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Plain.add_representer(str, text)
    whole: str = yaml.dump(value, Dumper=Plain, sort_keys=False, allow_unicode=True, explicit_start=many, width=100)
    return whole.rstrip("\n")
