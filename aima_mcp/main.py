"""The `aima` command: reads the command line, carries it out, and turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from aima_lib.errors import AimaError, InvalidArgument
from aima_mcp.faces.cli import build, command_line
from aima_mcp.faces.cli.output import Form, form_of, show_data

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run(words))


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code: that of the error, 2 for a wrong command line, 130 at Ctrl-C."""
    try:
        code = build().main(list(words), prog_name="aima", standalone_mode=False)
    except AimaError as error:
        return _failed(error, form_of(words))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return InvalidArgument.exit_code
    except click.UsageError as error:
        return _misused(error, form_of(words))
    except click.ClickException as error:
        return _failed(InvalidArgument(error.format_message()), form_of(words))
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _misused(error: click.UsageError, form: Form) -> int:
    hint = f"{error.ctx.command_path} --help" if error.ctx else "aima --help"
    if error.ctx and "unexpected extra argument" in error.message:
        options = [option.opts[0] for option in error.ctx.command.params if isinstance(option, click.Option) and "." not in option.opts[0]]
        hint = f"it takes {', '.join(options[:6])}{' …' if options[6:] else ''}; {hint} says more"
    return _failed(InvalidArgument(error.format_message(), hint=hint), form)


def _failed(error: AimaError, form: Form) -> int:
    if form != "table":
        show_data(error.as_dict(), form, stderr=True)
        return error.exit_code
    from aima_mcp.faces.cli.render import show_error

    show_error(error, [command_line(call["unit"], call["arguments"]) for call in error.next])
    return error.exit_code


if __name__ == "__main__":
    main()
