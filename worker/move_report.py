"""Moves as commands make them: several at a time, tried again within a window; and what is told of each."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import click
import orjson

from worker.cutover.following import LOST, MOVED_SINCE
from worker.cutover.ground import Ground, opened
from worker.cutover.reasons import FAULTS, reason
from worker.cutover.steps import Result
from worker.errors import CrossfadeError, UsageError
from worker.mongo.fence_lock import Turns
from worker.postgres import phases
from worker.postgres.faults import beginning
from worker.postgres.move_standing import REHEARSED
from worker.retry import Backoff
from worker.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
Make = Callable[[Ground, list[UUID]], Awaitable[Result]]
_SOON = 1.0  # seconds
_REST = Backoff(first=_SOON, longest=15.0)
"""After a pause in vain: it held writers up, who then have to catch up."""
_ENDED = frozenset({"", REHEARSED, MOVED_SINCE, LOST})
"""Why a move is not tried again."""
_DATABASES = {"mongo": "MongoDB", "postgres": "PostgreSQL", "": "where it did"}


def hook_options(command: F) -> F:
    """Give a command the options of hooks."""
    return _with(
        command,
        click.option("--before", default="", help="A shell command before a change, which may refuse."),
        click.option("--after", default="", help="A shell command after a change."),
        click.option(
            "--hook-within",
            default=30.0,
            show_default=True,
            type=click.FloatRange(0.1),
            help="Time of such a command, seconds.",
        ),
    )


def options(command: F) -> F:
    """Give a command the options of all moves."""
    seconds = click.FloatRange(0.05, 60)
    return _with(
        command,
        click.option("--group", is_flag=True, help="Move these tenants as one: all of them, or none."),
        click.option(
            "--at-once", default=1, show_default=True, type=click.IntRange(1, 50), help="Moves at a time."
        ),
        click.option("--rehearse", is_flag=True, help="Do all but decide; tell the pause."),
        click.option(
            "--deadline",
            default=1.0,
            show_default=True,
            type=seconds,
            help="Seconds from the pause's begin to the decision, at most; else the move aborts.",
        ),
        click.option(
            "--window",
            default=0.0,
            show_default=True,
            type=click.FloatRange(0),
            help="Try again for so many seconds.",
        ),
        click.option("--reason", default="", help="Why; noted with each change of phase."),
        hook_options,
        click.option("--json", "as_json", is_flag=True, help="Print a JSON array."),
    )


async def everyone(ground: Ground, role: str, phase: str) -> list[UUID]:
    """Return all tenants that are in a phase."""
    with beginning(role):
        known = await phases.read(ground.control)
    return [one for one, standing in known.items() if standing.phase == phase]


def together(tenants: Sequence[UUID], group: bool) -> list[list[UUID]]:
    """Return which tenants move as one: as a ``group`` all of them, else each alone."""
    return [list(tenants)] if group and tenants else [[one] for one in tenants]


def require_named_or_all(tenants: Sequence[UUID], every: bool, command: str) -> None:
    """`UsageError` unless tenants are named, or all are meant."""
    if every == bool(tenants):
        raise UsageError("name tenants, or --all", remedy=f"see `crossfade {command} --help`")


def _with(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


async def run_all(
    settings: Settings, role: str, groups: Sequence[list[UUID]], at_once: int, window: float, make: Make
) -> list[Result]:
    """Make moves, ``at_once`` at a time, each on a ground of its own; what fails does not stop the others.

    Each is tried again until it succeeds or ``window`` seconds are over.
    """
    gate = asyncio.Semaphore(at_once)
    turns = Turns()

    async def one(tenants: list[UUID]) -> Result:
        async with gate:
            until = time.monotonic() + window
            rests = _REST.delays()
            while True:
                result = await _once(settings, role, tenants, make, turns)
                rest = _SOON if result.pause is None else next(rests)
                if result.why in _ENDED or time.monotonic() + rest > until:
                    return result
                click.echo(f"{_who(result)}: {result.why}; trying again", err=True)
                await asyncio.sleep(rest)

    return list(await asyncio.gather(*map(one, groups)))


async def _once(settings: Settings, role: str, tenants: list[UUID], make: Make, turns: Turns) -> Result:
    try:
        async with opened(settings, role, turns=turns) as ground:
            return await make(ground, tenants)
    except CrossfadeError as error:
        return Result(tenants, "", why=str(error))
    except FAULTS as error:
        return Result(tenants, "", why=reason(error))


def tell(results: Sequence[Result], wanted: str, *, rehearse: bool, as_json: bool) -> None:
    """Print what became of moves, and exit: 0 when all ended in the ``wanted`` phase, or were rehearsed."""
    if as_json:
        told = [_as_data(one) for one in results]
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for one in results:
            click.echo(_line(one, rehearse))
    if not results:
        click.echo("there is no such tenant", err=True)
    sys.exit(0 if all(_went_well(one, wanted, rehearse) for one in results) else 1)


def _went_well(one: Result, wanted: str, rehearse: bool) -> bool:
    if rehearse:
        return one.why == REHEARSED
    return one.phase == wanted and not one.why and one.writable


def _as_data(one: Result) -> dict[str, Any]:
    return {
        "tenants": [str(tenant) for tenant in one.tenants],
        "phase": one.phase or None,
        "pause_ms": None if one.pause is None else round(one.pause * 1000, 1),
        "steps_ms": {name: round(seconds * 1000, 1) for name, seconds in one.steps.items()},
        "documents_looked_at": one.looked_at,
        "reason": one.why,
        "settled": one.settled,
    }


def _who(one: Result) -> str:
    return ", ".join(map(str, one.tenants))


def _line(one: Result, rehearse: bool) -> str:
    where = f"writes {_DATABASES[one.phase]}" if not one.phase else f"writes in {_DATABASES[one.phase]}"
    pause = "" if one.pause is None else f" after a pause of {one.pause * 1000:.0f} ms"
    steps = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in one.steps.items())
    more = f" ({steps} ms)" if steps else ""
    later = ""
    if not one.writable:
        later = "; PostgreSQL is away, and they cannot write before `crossfade control` has let them"
    elif not one.settled:
        later = "; the other database is away, and `crossfade control` sees to it later"
    if rehearse and one.why == REHEARSED:
        return f"{_who(one)}: rehearsed; {where}{pause}{more}{later}"
    why = f": {one.why}" if one.why else ""
    return f"{_who(one)}: {where}{pause}{more}{later}{why}"
