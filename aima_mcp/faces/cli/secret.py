"""Secrets on the command line: never as a word of it, which `ps` shows to every user and the shell keeps in its history.

They are asked for without echo on a terminal, or read from standard input or a file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from aima_lib.errors import InvalidArgument

LONGEST = 1 << 20


def options(key: str, spec: Mapping[str, Any]) -> Iterator[click.Option]:
    """How a secret may come."""
    name, described = key.replace("_", "-"), spec.get("description", "")
    words = f"{described}  [asked for on a terminal when not given; @FILE, or @- for standard input]"
    yield click.Option([f"--{name}", key], metavar="@FILE", help=words)
    yield click.Option([f"--{name}-stdin", _flag(key)], is_flag=True, help=f"Read {name} from standard input.")


def gather(wanted: Mapping[str, bool], params: Mapping[str, Any]) -> dict[str, str]:
    """The secrets that were given, and those that were not but are needed (`wanted` says which), where somebody can be asked.

    Raises:
        InvalidArgument: one was written on the command line itself, or cannot be read.
    """
    found = {}
    for key, needed in wanted.items():
        given = params.get(key)
        if given is not None and not given.startswith("@"):
            raise told(key)
        if given is not None or params.get(_flag(key)):
            found[key] = _read("-" if given is None else given[1:], key)
        elif needed and sys.stdin.isatty():
            found[key] = click.prompt(key, hide_input=True, err=True)
    return found


def told(key: str) -> InvalidArgument:
    """The refusal of a secret that was written on the command line."""
    name = key.replace("_", "-")
    return InvalidArgument(
        f"{key} is a secret: on a command line every user of this machine can read it, and the shell keeps it in its history",
        hint=f"leave it out to be asked for it, or give --{name}-stdin or --{name} @FILE; the one you wrote has been seen: replace it",
    )


def _flag(key: str) -> str:
    return f"cli_stdin_{key}"


def _read(path: str, key: str) -> str:
    """The text, without the line break that editors and `echo` put at its end."""
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb") as file:
            text = file.read(LONGEST + 1).decode()
    except OSError as error:
        raise InvalidArgument(f"{key} cannot be read from {path}: {error.strerror}", hint="@- reads standard input") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{key} is not UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r")
