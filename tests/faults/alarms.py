"""A run beside which the reconciler compares all the time: whatever it calls a mismatch is a false alarm."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.faults import choose, delete_topic
from tests.faults.harness import SETTLE_SECONDS, proxied
from tests.faults.run import Failed, Report, Run
from tests.support.wall_clock import WallClocks
from tests.support.world import World, world
from worker.embedded import Services
from worker.postgres.faults import FAULTS

_LOOK_EVERY = 0.2  # seconds
_REAL = "SELECT kind, collection, row_id::text, reason FROM crossfade.mismatch WHERE state = 'real' LIMIT 3"
_FULL = "SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL"
_COMPARED = "SELECT sum(documents) FROM crossfade.generation"


@dataclass(slots=True)
class Alarms:
    """What a run has shown: no alarm, or it had failed."""

    report: Report
    generations: int
    compared: int


async def run_alarms(
    services: Services, directory: Path, seed: int, *, seconds: float, rate: float, clocks: WallClocks
) -> Alarms:
    """Write, with faults, and compare everything again and again; `Failed` tells of the first false alarm.

    A topic deleted by hand is no fault here: until that is noticed the sides do differ.
    """
    async with world(services, directory) as w, proxied(w) as proxies:
        run = Run(w, services, seed, proxies, clocks)
        w.env["CROSSFADE_COPY_RATE"] = "2000"  # the reconciler meets a copy
        w.env["CROSSFADE_RECONCILE_FULL_EVERY"] = "0"
        w.env["CROSSFADE_RECONCILE_CHUNK"] = "200"
        w.env["CROSSFADE_REPLICATION_ROLE"] = run.rng.choice(["replica", "origin"])
        await w.load(10_000, tenants=20, seed=seed)
        watching: asyncio.Task[None] | None = None
        try:
            async with w.writes(rate, seed=seed) as writer:
                for name in ("publish", "apply"):
                    run.keep(name)
                await run.together(w.until_value("SELECT count(*) FROM crossfade.checkpoint", 1, 60))
                run.keep("reconcile")
                watching = asyncio.create_task(_watch(w))
                await run.together(_lag(run))
                until = asyncio.get_running_loop().time() + seconds
                while asyncio.get_running_loop().time() < until:
                    await asyncio.sleep(run.rng.uniform(1, 10))
                    told = await run.together(*(fault(run) for fault in choose(run, {delete_topic})))
                    run.report.faults += told
                    if watching.done():
                        watching.result()
            run.report.changes = writer.counters.changes
            await run.together(w.settled(SETTLE_SECONDS))
            await w.assert_nothing_lost()
            done = await w.value(_FULL)
            # Two more: one that began after all was applied, and what it saw looked at again.
            await run.together(w.until_value(_FULL, done + 2, SETTLE_SECONDS))
            none = "SELECT (NOT EXISTS (SELECT FROM crossfade.mismatch))::integer"
            await run.together(w.until_value(none, 1, SETTLE_SECONDS))
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            if not watching.cancelled():
                watching.result()
            return Alarms(run.report, await w.value(_FULL), int(await w.value(_COMPARED)))
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"faults: {'; '.join(run.report.faults[-10:])}")
            raise
        finally:
            if watching is not None:
                watching.cancel()
            await run.end()


async def _lag(run: Run) -> None:
    """Keep apply behind for long enough that several looks see the same unequal pair."""
    await run.w.until_value(_FULL, 1, SETTLE_SECONDS)
    settling = "SELECT count(*) FROM crossfade.mismatch WHERE checked_at - since > interval '3 s'"
    while not await run.w.value(settling):
        run.signal("apply", signal.SIGSTOP)
        await asyncio.sleep(_LOOK_EVERY)
    run.signal("apply", signal.SIGCONT)
    run.report.faults.append("pause apply until a lag was seen for 3 s")


async def _watch(w: World) -> None:
    """Look at what the reconciler has found, whether PostgreSQL is there or not; `Failed` at an alarm."""
    while True:
        with suppress(*FAULTS):
            connection = await asyncio.wait_for(w.connect(), 5)
            try:
                while True:
                    rows: list[Any] = await connection.fetch(_REAL, timeout=10)
                    if rows:
                        raise Failed(f"false alarm: {', '.join(str(tuple(row)) for row in rows)}")
                    await asyncio.sleep(_LOOK_EVERY)
            finally:
                connection.terminate()
        await asyncio.sleep(_LOOK_EVERY)
