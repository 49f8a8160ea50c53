"""The demo's second half: a tenant moves there, back, and there for good, while its application writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import orjson

from examples.spaces.meanwhile import writing
from examples.spaces.moved_writer import application

WRITES_PER_SECOND, BETWEEN = 50.0, 3.0
MOVES = (
    ("rehearsal", "cutover", ("--rehearse",)),
    ("cutover", "cutover", ()),
    ("rollback", "rollback", ()),
    ("cutover_again", "cutover", ()),
)
Command = Callable[..., Awaitable[str]]
"""Runs a command of ours to its end, and returns what it printed."""


async def moves(
    dsn: str, database: Any, command: Command, on_progress: Callable[[int], None]
) -> dict[str, Any]:
    """Move a tenant, and return the summary's lines: pauses in milliseconds, and what was lost.

    ``dsn``: PostgreSQL as the application's role. Publish, apply, reverse, reconcile and control must run,
    and the fences be installed.
    """
    tenant: UUID = min(await database["tenants"].distinct("_id"))
    told: dict[str, Any] = {"moved_tenant": str(tenant)}
    async with application(dsn, database, [tenant], WRITES_PER_SECOND, 3) as writer:
        async with writing(writer):
            for number, (name, move, options) in enumerate(MOVES, 1):
                await asyncio.sleep(BETWEEN)
                lines = await command(move, str(tenant), *options, "--window", "90", "--json")
                (result,) = orjson.loads(lines[lines.index("[\n") :])
                told[f"{name}_pause_ms"] = round(result["pause_ms"])
                on_progress(number)
            await asyncio.sleep(BETWEEN)
        await command("complete", str(tenant), "--yes")
        lost = await writer.compare({tenant: "postgres"})
        known = orjson.loads(await command("tenants", "--limit", "100000", "--json"))
        (told["moved_tenant_phase"],) = (one["phase"] for one in known if one["tenant"] == str(tenant))
        sides = [one.side for one in writer.written.accepted]
        told |= {
            "moving_writes": len(sides),
            "of_them_in_postgresql": sides.count("postgres"),
            "moving_writes_lost": len(lost) + sum(writer.written.errors.values()),
        }
    return told
