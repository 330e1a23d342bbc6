"""`aima chat`: talk to a model that is served."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.complete import completing
from aima_mcp.faces.cli.output import Form, formed, show_data

if TYPE_CHECKING:
    from aima_lib.door import Door
    from aima_lib.infra.home import Home


@click.command("chat")
@click.argument("model", required=False, shell_complete=completing("model"))
@click.option("--message", "-m", metavar="TEXT", help="Ask this, print the answer, end. Without a terminal, standard input is it.")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="At most this many tokens an answer.")
@click.option("--temperature", type=click.FloatRange(0, 5), help="0 takes the likeliest token always; higher is more varied.")
@formed
@click.pass_context
def command(
    ctx: click.Context,
    model: str | None,
    message: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    form: Form,
) -> None:
    """Talk to MODEL: a service's id or name, or a model's id. Without MODEL, to the only one that is ready.

    On a terminal it is a conversation: /new begins another, Ctrl-C stops an answer, Ctrl-D ends.
    """
    options = {key: value for key, value in (("max_tokens", max_tokens), ("temperature", temperature)) if value is not None}
    first = [{"role": "system", "content": system}] if system else []
    home = home_of(ctx)
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read()
    if message is not None:
        _once(home, model, [*first, {"role": "user", "content": message}], options, form)
        return
    if form != "table":
        raise click.UsageError(f"{form} needs -m TEXT, or the message on standard input")
    Conversation(home, model, first, options).run()


def _once(home: Home, model: str | None, messages: list[dict[str, Any]], options: Mapping[str, Any], form: Form) -> None:
    from aima_mcp.commands.turn import ask, only_model
    from aima_mcp.faces.cli.doorway import through

    async def work(door: Door) -> Mapping[str, Any]:
        return await ask(door, model or await only_model(door), messages, options, quiet=form != "table")

    answer = through(home, work, needs_host=True, plain=True)
    if form != "table":
        show_data(answer, form)


class Conversation:
    """Turns, until Ctrl-D. Each goes through the door anew, so a host that was restarted in between is found again."""

    def __init__(self, home: Home, model: str | None, first: list[dict[str, Any]], options: Mapping[str, Any]) -> None:
        self._home, self._model, self._options = home, model, options
        self._first, self._messages = first, [*first]

    def run(self) -> None:
        """Ask and answer."""
        from aima_mcp.commands.turn import only_model
        from aima_mcp.faces.cli.doorway import through

        if sys.platform != "win32":
            import readline  # noqa: F401  (gives input() its arrows and history)
        self._model = self._model or through(self._home, only_model, needs_host=True, plain=True)
        click.echo(f"{self._model}. /new begins another conversation, Ctrl-D ends.", err=True)
        while (text := self._read()) is not None:
            if text == "/new":
                self._messages = [*self._first]
            elif text:
                self._turn(text)

    def _read(self) -> str | None:
        try:
            return input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            click.echo(err=True)
            return ""

    def _turn(self, text: str) -> None:
        """A turn that fails or is stopped leaves the conversation as it was before."""
        from aima_lib.errors import AimaError
        from aima_mcp.commands.turn import ask
        from aima_mcp.faces.cli.doorway import through
        from aima_mcp.faces.cli.render import show_error

        messages = [*self._messages, {"role": "user", "content": text}]

        async def work(door: Door) -> Mapping[str, Any]:
            return await ask(door, str(self._model), messages, self._options)

        try:
            answer = through(self._home, work, needs_host=True, plain=True)
        except AimaError as error:
            show_error(error)
        except KeyboardInterrupt:
            click.echo("(stopped)", err=True)
        else:
            self._messages = [*messages, {"role": "assistant", "content": answer["content"]}]
