"""`aima serve`: host a home in the foreground."""

from __future__ import annotations

import sys

import click

from aima_lib.errors import InvalidArgument
from aima_mcp.commands.base import home_of


@click.command("serve")
@click.option("--host", metavar="ADDRESS", help="Address to bind; config.toml's, or 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to bind, 0 for any; config.toml's, or 8484.")
@click.option("--behind-proxy", is_flag=True, help="A proxy in front speaks TLS: an address beyond loopback may be bound.")
@click.option(
    "--conformance", is_flag=True, hidden=True, help="With the MCP conformance suite's fixtures, /mcp without a key; loopback only."
)
@click.pass_context
def command(ctx: click.Context, host: str | None, port: int | None, behind_proxy: bool, conformance: bool) -> None:
    """Host AIMA here, until Ctrl-C: every unit over HTTP, MCP at /mcp, OpenAI's API at /v1.

    Engines outlive a host that ends by a signal for engines.grace_seconds, so that a new one can take them over; `aima stop` ends them
    at once.
    """
    import anyio

    from aima_mcp.faces.cli.doorway import lone
    from aima_mcp.server import serve

    home = home_of(ctx)
    if conformance:
        if host not in (None, "127.0.0.1", "::1"):
            raise InvalidArgument(f"--conformance asks for no key, so it is not served at {host}", hint="leave --host out")
        host = host or "127.0.0.1"

    def ready(url: str) -> None:
        places = (f"HTTP    {url}", f"MCP     {url}/mcp", f"OpenAI  {url}/v1", f"key     aima key show  (in {home.path / 'key'})")
        click.echo("\n  ".join((f"AIMA hosts {home.path}", *places)), err=True)

    async def run() -> None:
        await serve(home, host=host, port=port, behind_proxy=behind_proxy, ready=ready, conformance=conformance)

    try:
        anyio.run(run, backend_options={"use_uvloop": sys.platform != "win32"})
    except KeyboardInterrupt:
        click.echo("ended", err=True)
    except BaseExceptionGroup as group:
        raise lone(group) from group
