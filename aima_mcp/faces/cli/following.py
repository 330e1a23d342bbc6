"""`--follow`, of queries that give a cursor and can wait: what is new, as it comes, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from aima_lib.door import Door
from aima_lib.infra.home import Home
from aima_lib.wording import plain
from aima_mcp.faces.cli.doorway import through
from aima_mcp.faces.cli.output import Form, show_data

WAIT_SECONDS, PAGE = 20, 1000


def follow(home: Home, found: Mapping[str, Any], arguments: Mapping[str, Any], form: Form) -> None:
    """Print what the query gives, and go on with what comes after its cursor. Ctrl-C is the way to end it."""

    async def tell(door: Door) -> None:
        given = dict(arguments)
        while True:
            page = await door.call(found["name"], given)
            for item in page[found["primary"]]:
                _print(item, form)
            given = {key: value for key, value in given.items() if key != "since"}
            given |= {"cursor": page["cursor"], "wait_seconds": WAIT_SECONDS, "tail": PAGE}

    try:
        through(home, tell, needs_host=True, plain=True)
    except KeyboardInterrupt:
        return


def _print(item: Any, form: Form) -> None:
    if form == "table":
        click.echo(plain(str(item)))
    else:
        show_data(item, form, many=True)
