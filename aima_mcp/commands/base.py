"""What the commands that are no units have in common: the home."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aima_lib.infra.home import Home


def home_of(ctx: click.Context) -> Home:
    """The folder this command line is about."""
    from aima_lib.infra.home import Home

    return Home(ctx.find_root().params.get("home"))
