"""`crossfade rollback`, `complete` and `tenants`: back to MongoDB, the end of the way back, who is where."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import click
import orjson

from worker import move_report
from worker.cutover import reasons
from worker.cutover.ground import Ground, opened
from worker.cutover.hooks import Hooks
from worker.cutover.move import Options
from worker.cutover.rollback import Rollback
from worker.cutover.steps import Result
from worker.errors import Transient, UsageError
from worker.postgres import outbox, phases
from worker.postgres.faults import FAULTS, beginning
from worker.settings import Settings, load

PHASES = ("mongo", "draining", "postgres", "rolling_back", "opening", "complete")


@click.command()
@click.argument("tenants", nargs=-1, type=click.UUID)
@click.option("--all", "every", is_flag=True, help="Every tenant that has moved and is not complete.")
@move_report.options
def rollback(
    tenants: tuple[UUID, ...],
    every: bool,
    group: bool,
    at_once: int,
    rehearse: bool,
    deadline: float,
    window: float,
    reason: str,
    before: str,
    after: str,
    hook_within: float,
    as_json: bool,
) -> None:
    """Bring tenants' writes back to MongoDB, with all that they wrote since their cutover.

    Needs `crossfade reverse`, which brings what the application writes to MongoDB all the time. Exit 0 when
    all of them write in MongoDB. Before it is decided, what fails lets the tenant write in PostgreSQL again.

    \b
    Examples:
      crossfade rollback TENANT --rehearse
      crossfade rollback TENANT
      crossfade rollback --all --at-once 4 --window 600
    """
    move_report.require_named_or_all(tenants, every, "rollback")
    options = Options(
        deadline=deadline,
        rehearse=rehearse,
        reason=reason or "rollback",
        hooks=Hooks(before, after, hook_within),
    )
    results = asyncio.run(_rollback(load(), tenants, group, at_once, options, window))
    move_report.tell(results, "mongo", rehearse=rehearse, as_json=as_json)


async def _rollback(
    settings: Settings, tenants: Sequence[UUID], group: bool, at_once: int, options: Options, window: float
) -> list[Result]:
    if not tenants:
        async with opened(settings, "rollback") as ground:
            tenants = await move_report.everyone(ground, "rollback", "postgres")
    groups = move_report.together(tenants, group)

    async def make(ground: Ground, some: list[UUID]) -> Result:
        return await Rollback(ground, some, options, lambda line: click.echo(line, err=True)).run()

    return await move_report.run_all(settings, "rollback", groups, at_once, window, make)


@click.command()
@click.argument("tenants", nargs=-1, required=True, type=click.UUID)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="complete", help="Why; noted with the change of phase.")
@move_report.hook_options
def complete(
    tenants: tuple[UUID, ...], yes: bool, reason: str, before: str, after: str, hook_within: float
) -> None:
    """End the way back of tenants: from now on MongoDB no longer follows, and they cannot be rolled back.

    \b
    Example:
      crossfade complete TENANT --yes
    """
    if not yes:
        click.confirm(f"{len(tenants)} tenants can then no longer go back. Go on?", abort=True)
    asyncio.run(_complete(load(), tenants, reason, Hooks(before, after, hook_within)))


async def _complete(settings: Settings, tenants: Sequence[UUID], reason: str, hooks: Hooks) -> None:
    async with opened(settings, "complete") as ground:
        with beginning("complete"):
            known = await phases.read(ground.control, tenants)
        for tenant in tenants:
            phase = known[tenant].phase if tenant in known else "not known"
            if phase == "complete":
                click.echo(f"{tenant}: complete already")
                continue
            if phase != "postgres":
                raise UsageError(f"tenant {tenant} is in {phase}", remedy="see `crossfade tenants`")
            epochs = {tenant: known[tenant].epoch}
            await hooks.run("before", "complete", [tenant])
            try:
                changed = await phases.change(ground.control, epochs, "postgres", "complete", reason)
            except phases.Locked as error:
                raise Transient(str(error), remedy="try again") from None
            except FAULTS as error:
                raise Transient(reasons.reason(error), remedy="try again") from None
            if changed is None:
                raise UsageError(
                    f"tenant {tenant} was moved in this moment", remedy="see `crossfade tenants`"
                )
            click.echo(f"{tenant}: complete")
            await hooks.run("after", "complete", [tenant])


@click.command(name="tenants")
@click.option("--phase", "wanted", type=click.Choice(PHASES), help="Only those in this phase.")
@click.option("--history", type=click.UUID, help="Tell one tenant's changes of phase, the newest first.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="Lines at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def tenants_(wanted: str | None, history: UUID | None, limit: int, as_json: bool) -> None:
    """Tell where tenants' writes go.

    \b
    Examples:
      crossfade tenants
      crossfade tenants --phase postgres
      crossfade tenants --history TENANT
    """
    told = asyncio.run(_tenants(load(), wanted, history, limit))
    if len(told) == limit:
        click.echo(f"{limit:,} lines; there may be more: --limit", err=True)
    if as_json:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for one in told:
            click.echo("  ".join(str(value) for value in one.values()))
    sys.exit(0 if told else 1)


async def _tenants(
    settings: Settings, wanted: str | None, history: UUID | None, limit: int
) -> list[dict[str, Any]]:
    async with opened(settings, "tenants") as ground:
        if history is not None:
            return [
                {
                    "at": one.at.isoformat(timespec="milliseconds"),
                    "change": f"{one.before} -> {one.after}",
                    "epoch": one.epoch,
                    "by": f"{one.database_user} {one.os_user}",
                    "reason": one.reason,
                    "evidence": one.evidence,
                }
                for one in await phases.history(ground.control, history, limit)
            ]
        found: list[dict[str, Any]] = []
        for one in (await phases.read(ground.control)).values():
            if wanted in (None, one.phase) and len(found) < limit:
                broken = one.phase == "postgres" and await outbox.faults(ground.control, one.tenant)
                found.append(
                    {
                        "tenant": str(one.tenant),
                        "phase": one.phase,
                        "epoch": one.epoch,
                        "for_seconds": round(one.seconds, 1),
                        "way_back": "broken" if broken else "",
                    }
                )
        return found
