"""The command-line face: `aima <domain> <action>` for every unit, generated from its schema file, beside a few commands of its own.

Only what a command needs is read: the help of `aima` looks at folders, that of a domain at its files, a command at its own.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import click

from aima_lib import __version__
from aima_lib.registry import SCHEMAS, Unit, inline
from aima_mcp.faces.cli import arguments as words
from aima_mcp.faces.cli import files, output
from aima_mcp.faces.cli.allowed import allowed

DOTTED = "aima.dotted"
CALLABLE = re.compile(r'^  "kind": "(command|query)",$', re.MULTILINE)
# Command → the module that has it, and what the help says, so that the help imports none of them.
COMMANDS = {
    "quickstart": "Find a model that fits this machine, fetch it, serve it, ask it something.",
    "chat": "Talk to a model that is served.",
    "serve": "Host AIMA here, until Ctrl-C.",
    "start": "Host AIMA in the background.",
    "stop": "End the host in the background, and its engines.",
    "status": "What runs: host, services, models, devices.",
    "top": "What devices, services and runs do now, until q or Ctrl-C.",
    "mcp": "Serve MCP over standard input and output; `mcp install` tells a client of it.",
    "doctor": "Check the machine and every unit.",
    "events": "What happened; --follow goes on.",
    "approve": "Let a call pass that waits for you, or deny it.",
    "freeze": "Stop every change, at once; `aima thaw` lets them go on.",
    "thaw": "Let things be changed again after a freeze.",
    "key": "Keys for others; `key show` prints the owner's, for HTTP and OpenAI clients.",
    "completion": "Print the script that completes commands in a shell.",
}


@cache
def domains() -> dict[str, list[str]]:
    """Domain → its actions, without reading what they take."""
    names = sorted(path.name for path in SCHEMAS.iterdir() if path.is_dir() and path.name != "types")
    return {name: found for name in names if (found := actions(name))}


@cache
def actions(domain: str) -> list[str]:
    """The actions of one domain. Whether a file is a command's or a query's its text says: to parse them costs a fifth of `aima --help`."""
    if not domain.isidentifier() or domain == "types":
        return []
    return [path.stem for path in sorted(SCHEMAS.glob(f"{domain}/*.json")) if CALLABLE.search(path.read_text(encoding="utf-8"))]


def definition(name: str) -> Mapping[str, Any] | None:
    """A unit's file, with its references inlined, or None."""
    domain, _, action = name.partition(".")
    path = SCHEMAS / domain / f"{action}.json"
    if not (domain.isidentifier() and action.isidentifier() and domain != "types" and path.is_file()):
        return None
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return inline(found, path) if found["kind"] in ("command", "query") else None


def command_line(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as one would type it."""
    found = definition(name)
    return words.command_line(name, arguments, found["inputSchema"] if found else None)


class Suggesting(click.Group):
    """A group that says what is near when there is no such command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from aima_lib.names import did_you_mean

            hint = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"{error.message} {hint.capitalize()}" if hint else error.message, ctx) from None


class Root(Suggesting):
    """`aima`: its own commands and a group for each domain, made when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(dict.fromkeys([*COMMANDS, *domains()]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in COMMANDS:
            found: click.Command = importlib.import_module(f"aima_mcp.commands.{cmd_name}").command
            return found
        return Domain(cmd_name) if actions(cmd_name) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        with formatter.section("Units"):
            shown = {domain: allowed(domain, found, ctx.params.get("home")) for domain, found in domains().items()}
            formatter.write_dl([(domain, " ".join(found)) for domain, found in shown.items() if found])


class Domain(Suggesting):
    """`aima model`: one command for each unit of the domain."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=f"Units of the domain {name}.")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return allowed(str(self.name), actions(str(self.name)), ctx.find_root().params.get("home"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        found = definition(f"{self.name}.{cmd_name.replace('-', '_')}")
        return UnitCommand(found) if found else None


class UnitCommand(click.Command):
    """`aima model pull`: one unit."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.definition, self.schema = found, found["inputSchema"]
        super().__init__(
            str(found["name"]).partition(".")[2],
            params=[*words.options(self.schema), *_manners(found)],
            help=found["description"],
            short_help=found["title"],
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args, ctx.meta[DOTTED] = words.split_dotted(self.schema, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> None:
        from aima_lib.infra.home import Home
        from aima_mcp.faces.cli.call import Consent, Manner, call_unit

        given, home = ctx.params, Home(ctx.find_root().params.get("home"))
        arguments, form = words.gather(self.schema, given, ctx.meta[DOTTED]), output.form_in(given)
        if given.get("cli_follow"):
            from aima_mcp.faces.cli.following import follow

            follow(home, self.definition, arguments, form)
            return
        consent = Consent(bool(given.get("cli_plan")), given.get("cli_token"), bool(given.get("cli_yes")))
        manner = Manner(form, given["cli_timeout"], given.get("cli_key"), not given.get("cli_detach"), consent, given.get("cli_out"))
        call_unit(home, Unit(self.definition), arguments, manner)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        outputs = self.definition["outputSchema"]["properties"]
        with formatter.section("Output"):
            formatter.write_dl([(key, spec.get("description", "")) for key, spec in outputs.items()])
        if errors := self.definition["errors"]:
            with formatter.section("Errors"):
                formatter.write_text(", ".join(errors))
        with formatter.section("Examples"):
            for line in self._examples():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def _examples(self) -> Iterator[str]:
        for example in self.definition["examples"]:
            outcome = f"  (error: {example['error']})" if "error" in example else ""
            yield f"# {example['title']}{outcome}"
            yield words.command_line(self.definition["name"], example.get("input", {}), self.schema)


def _manners(found: Mapping[str, Any]) -> Iterator[click.Option]:
    """What every command takes beside its unit's properties. A property of the same name has the better right to it."""
    taken = found["inputSchema"]["properties"]
    base = "--arguments" if "input" in taken else "--input"
    whole = "All arguments as one JSON object, @file, or @- for standard input; other options go over it."
    yield click.Option([base, words.BASE], metavar="JSON", help=whole)
    yield from output.options(taken)
    if found["kind"] == "command":
        yield from _consent(taken)
    if _can_follow(found):
        yield click.Option(["--follow", "-f", "cli_follow"], is_flag=True, help="Go on with what comes, until Ctrl-C.")
    if "out" not in taken and files.places(found["outputSchema"]):
        yield click.Option(["--out", "cli_out"], metavar="FILE", help="Write what was made to a file; - is standard output.")
    yield click.Option(["--timeout", "cli_timeout"], type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
    if found.get("durable"):
        yield click.Option(["--idempotency-key", "cli_key"], metavar="TEXT", help="Same key and same input: the same run, not another.")
        names = ["--detach"] if "wait" in taken else ["--no-wait", "--detach"]
        yield click.Option([*names, "cli_detach"], is_flag=True, help="Print the run and leave it to the host.")


def _can_follow(found: Mapping[str, Any]) -> bool:
    """Whether a query says where it ended, and can wait for what comes after that."""
    given = found["inputSchema"]["properties"]
    return {"cursor", "wait_seconds"} <= set(given) and "cursor" in found["outputSchema"]["properties"] and "follow" not in given


def _consent(taken: Mapping[str, Any]) -> Iterator[click.Option]:
    """Plan, look, and only then do it."""
    if "plan" not in taken:
        yield click.Option(["--plan", "cli_plan"], is_flag=True, help="Say what it would change, and do nothing.")
    if "token" not in taken:
        yield click.Option(["--token", "cli_token"], metavar="TEXT", help="The token of its plan.")
    yield click.Option(["--yes", "cli_yes"], is_flag=True, help="Do it without asking, where its plan would be asked about.")


def build() -> click.Group:
    """The `aima` command."""
    home = click.Option(["--home"], metavar="PATH", help="The folder to use: AIMA_HOME or ~/.aima when not given.")
    version = click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
    return Root(
        "aima",
        params=[home, version],
        help="AI inference, managed by AI: run models on machines you own, from a shell, an agent or a program.",
        epilog="`aima quickstart` to begin; `aima <unit> --help` and `aima <unit> <action> --help` say more.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value:
        click.echo(f"aima {__version__}")
        ctx.exit()
