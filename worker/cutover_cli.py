"""`crossfade cutover`: move tenants' writes to PostgreSQL, rehearse that, and look whether it can go well."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import click
import orjson

from worker import move_report
from worker.cutover import checks
from worker.cutover.checks import Check
from worker.cutover.ground import Ground, opened
from worker.cutover.hooks import Hooks
from worker.cutover.move import Move, Options
from worker.cutover.steps import Result
from worker.errors import ConfigurationError, SchemaError, UsageError
from worker.mapping import hashes
from worker.mapping import load as load_mapping
from worker.mongo.client import connect as connect_mongo
from worker.mongo.objectids import with_objectids
from worker.postgres import audit, capture, fences, id_defaults, ledger, mapping_versions
from worker.postgres.connect import connect, require_direct
from worker.postgres.faults import FAULTS, describe
from worker.settings import Settings, load


class _Tenants(click.Group):
    """Takes what is no command of the group for a tenant to be moved: `crossfade cutover TENANT`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            return "run", self.commands["run"], args
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Tenants)
def cutover() -> None:
    """Move tenants' writes from MongoDB to PostgreSQL.

    \b
    Once:      crossfade cutover prepare
    First:     crossfade cutover check TENANT
    Then:      crossfade cutover TENANT --rehearse
    At last:   crossfade cutover TENANT
    """


@cutover.command()
def prepare() -> None:
    """Install the fences, and what captures writes for the way back: triggers on the mapped tables.

    Where a collection's ids are ObjectIds, rows born in PostgreSQL need such ids as well: an id column that
    has no default gets one, until `crossfade finish`. One that has a default is left as it is, and told.

    Needs CROSSFADE_POSTGRES_ADMIN_DSN. From then on the application can write a tenant's rows in PostgreSQL
    only after its cutover. Locks one table at a time for an instant, and gives up where it waits for 2 s.
    Then it gives the ledger an index by tenant, beside all that goes on; that takes its time where there are
    many documents. May be run again at any time, as after a new table was mapped.
    """
    settings = load()
    if settings.postgres_admin_dsn is None:
        raise ConfigurationError(
            "CROSSFADE_POSTGRES_ADMIN_DSN: not set", remedy="name the owner of the tables, or a superuser"
        )
    changed, ids = asyncio.run(_prepare(settings, settings.postgres_admin_dsn.get_secret_value()))
    click.echo(f"fences: installed on {changed} tables" if changed else "fences: up to date", err=True)
    for one in ids:
        if one.default is None:
            click.echo(f"ids: {one.table}.{one.column} makes ObjectIds now", err=True)
        elif not one.ours:
            told = f"has a default already, {one.default}, and keeps it"
            click.echo(f"ids: {one.table}.{one.column} {told}: it makes no ObjectIds", err=True)


async def _prepare(settings: Settings, dsn: str) -> tuple[int, list[id_defaults.IdColumn]]:
    mapping = load_mapping(settings.mapping)
    client = await connect_mongo(settings.mongo_uri.get_secret_value(), "prepare")
    try:
        ids = [
            (mapping.collections[name].table, mapping.collections[name].id)
            for name in await with_objectids(client, mapping)
        ]
    finally:
        client.close()
    setting = "CROSSFADE_POSTGRES_ADMIN_DSN"
    connection = await connect(dsn, "prepare", setting=setting, statement_timeout=60)
    require_direct(connection, setting)  # our timeouts are the session's
    try:
        await connection.execute("SET lock_timeout = '2s'")
        changed = await fences.install(connection, mapping)
        numbers = (await mapping_versions.agree(connection, hashes(mapping))).numbers
        await capture.install_capture(connection, mapping, numbers)
        installed = await id_defaults.install(connection, ids)
        await ledger.index_tenants(connection, lambda line: click.echo(line, err=True))
        return changed, installed
    except FAULTS as error:
        raise SchemaError(
            f"the fences could not be installed ({describe(error)})",
            remedy="run `crossfade schema apply` first; where a table is locked, try again",
        ) from None
    finally:
        connection.terminate()


@cutover.command()
@click.argument("tenants", nargs=-1, required=True, type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object for each check.")
def check(tenants: tuple[UUID, ...], as_json: bool) -> None:
    """Look whether tenants can be moved; exit 0 only if all checks hold. Changes nothing.

    \b
    Example:
      crossfade cutover check 6f9619ff-8b86-d011-b42d-00c04fc964ff
    """
    made = asyncio.run(_check(load(), tenants))
    if as_json:
        click.echo(orjson.dumps([_as_data(one) for one in made], option=orjson.OPT_INDENT_2).decode())
    else:
        for one in made:
            click.echo(_line(one))
    sys.exit(0 if all(one.ok for one in made) else 1)


def _as_data(one: Check) -> dict[str, Any]:
    return {
        "name": one.name,
        "ok": one.ok,
        "reason": one.reason,
        "remedy": one.remedy,
        "forcible": one.forcible,
    }


def _line(one: Check) -> str:
    mark = "ok    " if one.ok else "FAILED"
    more = f"\n{'':37}{one.remedy}" if one.remedy else ""
    force = f"\n{'':37}or --force {one.name}" if not one.ok and one.forcible else ""
    return f"{mark} {one.name:<29} {one.reason}{more}{force}"


async def _check(settings: Settings, tenants: Sequence[UUID]) -> list[Check]:
    async with opened(settings, "cutover check") as ground:
        return await checks.run(ground, tenants)


@cutover.command(name="run")
@click.argument("tenants", nargs=-1, type=click.UUID)
@click.option("--all", "every", is_flag=True, help="Every tenant that is at home in MongoDB.")
@click.option(
    "--force", "forced", multiple=True, type=click.Choice(checks.FORCIBLE), help="Overrule a check."
)
@move_report.options
def run_(
    tenants: tuple[UUID, ...],
    every: bool,
    group: bool,
    at_once: int,
    rehearse: bool,
    deadline: float,
    window: float,
    forced: tuple[str, ...],
    reason: str,
    before: str,
    after: str,
    hook_within: float,
    as_json: bool,
) -> None:
    """Move tenants. Exit 0 when all of them write in PostgreSQL (with --rehearse: when all could have moved).

    A tenant can write nowhere from the fence to the decision, for a fraction of a second, and --deadline at
    most: then the move aborts, and it writes in MongoDB again. What fails does not stop the others.

    \b
    Examples:
      crossfade cutover TENANT --rehearse
      crossfade cutover TENANT --window 600
      crossfade cutover TENANT TENANT --group
      crossfade cutover --all --at-once 4
    """
    move_report.require_named_or_all(tenants, every, "cutover")
    options = Options(
        deadline=deadline,
        rehearse=rehearse,
        reason=reason or "cutover",
        hooks=Hooks(before, after, hook_within),
    )
    results = asyncio.run(_run(load(), tenants, group, at_once, options, window, forced))
    move_report.tell(results, "postgres", rehearse=rehearse, as_json=as_json)


async def _run(
    settings: Settings,
    tenants: Sequence[UUID],
    group: bool,
    at_once: int,
    options: Options,
    window: float,
    forced: Sequence[str],
) -> list[Result]:
    async with opened(settings, "cutover") as ground:
        tenants = tenants or await move_report.everyone(ground, "cutover", "mongo")
    return await move_report.run_all(
        settings,
        "cutover",
        move_report.together(tenants, group),
        at_once,
        window,
        lambda ground, some: _once(ground, some, options, forced),
    )


async def _once(ground: Ground, tenants: list[UUID], options: Options, forced: Sequence[str]) -> Result:
    await _require(ground, tenants, forced)
    return await Move(ground, tenants, options, lambda line: click.echo(line, err=True)).run()


async def _require(ground: Ground, tenants: Sequence[UUID], forced: Sequence[str]) -> None:
    """Make the checks; a `UsageError` tells those that do not hold and were not overruled."""
    made = await checks.run(ground, tenants)
    if wrong := [one for one in made if not one.ok and one.name not in forced]:
        raise UsageError("; ".join(f"{one.name}: {one.reason}: {one.remedy}" for one in wrong))
    if overruled := [one.name for one in made if not one.ok]:
        subject = {"tenants": [str(tenant) for tenant in tenants], "checks": overruled}
        await audit.note(ground.control, "cutover: checks overruled", subject)
