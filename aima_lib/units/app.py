"""Handlers of app.*"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aima_lib.errors import Cancelled
from aima_lib.flows.source import parse, refusal
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.infra.clock import moment
from aima_lib.registry import handles, plans
from aima_lib.services.app_template import Template, builtins, findings, named, volume_of, volumes_of
from aima_lib.services.app_view import template_shown

Result = Mapping[str, Any]
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


@handles("app.install", unwinds=True)
async def install_app(ctx: Context, template: str, name: str | None = None, config: Mapping[str, Any] | None = None) -> Result:
    chosen, run_id = _template(ctx, template), str(ctx.run_id)
    app_id = name or str(chosen["name"])
    if ctx.runs.is_cancelled(run_id):
        await ctx.services.apps.undo(app_id, run_id)
        raise Cancelled(f"the install of {app_id} was cancelled; what was made of it is gone again")
    return {"app": await ctx.services.apps.install(chosen, app_id, config or {}, ctx.caller, run_id, ctx.send)}


@handles("app.update")
async def update_app(ctx: Context, app_id: str, template: str | None = None, config: Mapping[str, Any] | None = None) -> Result:
    chosen = None if template is None else _template(ctx, template)
    return {"app": await ctx.services.apps.update(app_id, chosen, config, ctx.caller, str(ctx.run_id), ctx.send)}


@handles("app.start")
async def start_app(ctx: Context, app_id: str) -> Result:
    app, notes = await ctx.services.apps.start(app_id, ctx.caller, ctx.send)
    return {"app": app, "notes": notes}


@handles("app.stop")
async def stop_app(ctx: Context, app_id: str, timeout_seconds: float | None = None) -> Result:
    return {"app": await ctx.services.apps.stop(app_id, timeout_seconds)}


@handles("app.uninstall")
async def uninstall_app(ctx: Context, app_id: str, remove_data: bool = False) -> Result:
    return await ctx.services.apps.uninstall(app_id, remove_data)


@handles("app.get")
async def get_app(ctx: Context, app_id: str) -> Result:
    return {"app": await ctx.services.apps.get(app_id)}


@handles("app.by_id")
async def app_by_id(ctx: Context, app_id: str) -> Result:
    return {"app": await ctx.services.apps.get(app_id)}


@handles("app.list")
async def list_apps(ctx: Context, status: str | None = None, category: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    apps, total = await ctx.services.apps.list(status, category, limit, offset)
    return {"apps": apps, "total": total}


@handles("app.logs")
async def app_logs(
    ctx: Context, app_id: str, tail: int = 100, since: str | None = None, cursor: str | None = None, wait_seconds: float = 0.0
) -> Result:
    since = moment(since) if since else None
    lines, place = await ctx.services.apps.logs(app_id, tail, since, cursor, wait_seconds)
    return {"lines": lines, "cursor": place}


@handles("app.templates")
async def list_templates(ctx: Context, category: str | None = None) -> Result:  # noqa: ARG001
    found = [template_shown(each) for each in builtins().values() if category in (None, each["category"])]
    return {"templates": found, "total": len(found)}


@handles("app.shelf")
async def template_shelf(ctx: Context) -> Result:
    return await list_templates(ctx)


@plans("app.install")
async def plan_install(ctx: Context, given: Mapping[str, Any]) -> Change:
    template = _template(ctx, given["template"])
    app_id = given.get("name") or str(template["name"])
    old, chosen, lacking = await ctx.services.apps.foresee(template, app_id, given.get("config") or {})
    if old and old["phase"] == "installed":
        return Change() if old["desired"] else Change(starts=(("app", app_id),))
    volumes = () if old else tuple(("volume", volume_of(app_id, name)) for name in volumes_of(chosen))
    links = (("key", f"app-{app_id}"),) if "link" in chosen and (given.get("config") or {}).get("link", True) else ()
    tags = [image for image in lacking if "@" not in image]
    notes = tuple(f"{image} is what the registry says it is when it is fetched, and from then on known by its digest" for image in tags)
    made = () if old else (("app", app_id),)
    return Change(
        creates=(*made, *volumes, *links),
        starts=(("app", app_id),),
        download_bytes=None if lacking else 0,
        memory_bytes=_memory(chosen),
        notes=notes,
    )


@plans("app.update")
async def plan_update(ctx: Context, given: Mapping[str, Any]) -> Change:
    app_id, template = given["app_id"], given.get("template")
    chosen, lacking = await ctx.services.apps.foresee_update(
        app_id, None if template is None else _template(ctx, template), given.get("config")
    )
    if chosen is None:
        return Change()
    here, note = (("app", app_id),), "its containers are replaced, and what the new ones do to its data stays done"
    return Change(starts=here, stops=here, download_bytes=None if lacking else 0, memory_bytes=_memory(chosen), notes=(note,))


@plans("app.start")
async def plan_start(ctx: Context, given: Mapping[str, Any]) -> Change:
    app = await ctx.services.apps.get(given["app_id"])
    starts = (("app", app["id"]),)
    if ctx.services.apps.has_lost_key(app["id"]):
        note = "its key was revoked: it gets another, and its containers are made anew with that"
        return Change(creates=(("key", f"app-{app['id']}"),), starts=starts, memory_bytes=None, notes=(note,))
    return Change() if app["status"] == "running" else Change(starts=starts, memory_bytes=None)


@plans("app.stop")
async def plan_stop(ctx: Context, given: Mapping[str, Any]) -> Change:
    app = await ctx.services.apps.get(given["app_id"])
    return Change() if app["status"] in ("stopped", "uninstalled") else Change(stops=(("app", app["id"]),), freed_bytes=None)


@plans("app.uninstall")
async def plan_uninstall(ctx: Context, given: Mapping[str, Any]) -> Change:
    app = await ctx.services.apps.get(given["app_id"])
    here = ("app", app["id"])
    running = () if app["status"] in ("stopped", "uninstalled") else (here,)
    key = (("key", app["link"]["key_id"]),) if app["link"] and app["link"]["key_id"] else ()
    change = Change(stops=(*running, *key), saw={"since": app["created_at"], "status": app["status"]}, freed_bytes=None)
    if given.get("remove_data"):
        volumes = tuple(("volume", volume["volume"]) for volume in app["volumes"])
        return replace(change, deletes=(here, *volumes), notes=("its secrets are forgotten too",))
    return replace(change, deletes=(here,), notes=("its data stays: remove_data deletes that too",))


def _template(ctx: Context, text: str) -> Template:
    """The template called so, or the one that is written here.

    Raises:
        NotFound: none is called so.
        InvalidArgument: it is none, or asks for what no app may have; every such field is named, and where it stands.
        PermissionDenied: the caller may not bring templates of its own.
    """
    if NAME.fullmatch(text):
        return named(text)
    document, places = parse(text)
    issues = [places.issue(path, message, key=True) for path, message in findings(document)]
    if issues:
        raise refusal("template", issues)
    ctx.caller.need("admin", "app.install with a template of one's own")
    template: Template = document
    return template


def _memory(template: Template) -> int | None:
    limits = [each.get("memory_bytes") for each in template["containers"].values()]
    return None if None in limits else sum(limits)
