"""One seeded run in which tenants move there and back, an application writes, and everything fails.

Rounds: lanes move tenants while faults strike; then the faults end, and every tenant must soon be writable
and at home. At last all is brought to rest and compared. What moves a lane makes, and which faults strike,
comes from the seed; when, from the machine too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from examples.spaces.meanwhile import writing
from examples.spaces.moved_writer import MovedWriter, application, two_writers
from tests.faults.faults import WHILE_MOVING, choose
from tests.faults.harness import SETTLE_SECONDS, no_traceback, proxied
from tests.faults.lanes import Lane, standing
from tests.faults.run import Failed, Report, Run
from tests.faults.walls import Walls
from tests.support.edges import away
from tests.support.moving import prepared, tenants_of
from tests.support.wall_clock import WallClocks
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once, world
from worker.embedded import Services

ROUNDS, ROUND_SECONDS = 2, 8.0
WITHIN = 5.0
"""Seconds: a tenant is writable so soon after all faults, and at home so soon after the last command; and its
own pause's limit comes on top."""
_NEVER = 120.0
_SETTLED = frozenset({"mongo", "postgres", "complete"})
_NOT_ROGUE = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead' AND kind <> 'rogue'"
_STRANGERS = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'rogue' AND row_id <> ALL($1::uuid[])"
_DISCARD = "UPDATE crossfade.dead_letter SET state = 'discarded' WHERE state = 'dead'"
_WALKED = "SELECT coalesce(max(generation), 0) FROM crossfade.generation"
_CLEAN = """
SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL
    AND unclean = '{{}}' AND generation > {}
"""
_IN_TIME = """
SELECT (min(heartbeat_at) > clock_timestamp() - interval '2 s')::integer FROM crossfade.partition_progress
"""
# Nothing was put back by hand: no process may find that a database had forgotten a decision.
_NEVER_TOLD = ("by another move than PostgreSQL knows of", "though PostgreSQL says rolling_back")


@dataclass(slots=True)
class MovedReport(Report):
    """What a run did. ``worst``: seconds, the longest that any tenant took to be writable again."""

    cutovers: int = 0
    rollbacks: int = 0
    aborted: int = 0
    rogues: int = 0
    refused: int = 0
    unclear: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    completed: int = 0
    worst: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.changes} writes, {self.unclear} unclear{f' {self.errors}' if self.errors else ''}; "
            f"{self.cutovers} cutovers, {self.rollbacks} rollbacks, {self.aborted} aborted, {self.completed} "
            f"completed; {self.rogues} rogue writes, {self.refused} raw ones refused; "
            f"{self.restarts} restarts; writable after {self.worst:.1f} s at worst; {'; '.join(self.faults)}"
        )


class _Moved:
    """What the parts of a run share."""

    def __init__(self, run: Run, writer: MovedWriter, tenants: Sequence[UUID], within: float) -> None:
        self.run, self.w, self.writer, self.tenants, self.within = run, run.w, writer, tenants, within
        self.report = MovedReport(run.report.seed)
        run.report = self.report
        began, rng = time.monotonic(), run.rng
        shuffled = rng.sample(list(tenants[:-1]), len(tenants) - 1)
        pair, alone = (shuffled[:2], shuffled[2:]) if rng.random() < 0.5 else ([], shuffled)
        self.lanes = [Lane(run, "ABCDEFG"[n], [one], began) for n, one in enumerate(alone)]
        if pair:
            self.lanes.append(Lane(run, "P", pair, began))
        self.walls = Walls(run, writer, tenants)


async def run_moved_seed(
    services: Services,
    directory: Path,
    seed: int,
    *,
    code: Path | None = None,
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
    within: float = WITHIN,
    clocks: WallClocks,
) -> MovedReport:
    """Run one seed; `Failed` or an assertion says what went wrong. ``code``: the program's folder."""
    async with world(services, directory) as w, proxied(w) as proxies:
        w.code = code or w.code
        w.env |= {"PYTHONFAULTHANDLER": "1", "CROSSFADE_RECONCILE_FULL_EVERY": "2"}
        run = Run(w, services, seed, proxies, clocks)
        rng = run.rng
        w.env["CROSSFADE_REPLICATION_ROLE"] = rng.choice(["replica", "replica", "origin"])
        await w.load(rng.choice([100, 200, 400]), tenants=rng.randint(3, 5), seed=seed)
        lanes: list[Lane] = []
        told: list[str] = []
        try:
            for name in ("publish", "apply", "reverse", "control"):
                run.keep(name)
            await run.together(w.settled(SETTLE_SECONDS))
            run.keep("reconcile")
            await run.together(prepared(w))
            tenants = await tenants_of(w)
            dsn = services.dsn("application_role", w.name)
            async with application(dsn, w.mongo, tenants, rng.choice([60, 100, 150]), seed) as writer:
                moved = _Moved(run, writer, tenants, within)
                lanes, told = moved.lanes, moved.walls.told
                await moved.walls.begin()
                for name in ("control second", "reverse second", "apply second"):
                    if rng.random() < 0.3:
                        run.keep(name)
                async with writing(writer):
                    for _ in range(rounds):
                        await _round(moved, seconds)
                    await run.together(_recovered(w))
                    # So that each run has a move, however long all took to be whole again.
                    await run.together(lanes[0].move_at_last())
                await _at_rest(moved)
                await _completed(moved)
            no_traceback(run)
            return moved.report
        except (Exception, pytest.fail.Exception) as error:
            for lane in lanes:
                error.add_note(f"{', '.join(map(str, lane.tenants))}:\n      " + "\n      ".join(lane.told))
            error.add_note(f"raw clients: {'; '.join(told)}")
            error.add_note(f"faults: {'; '.join(run.report.faults)}")
            await run.tell_stacks()
            raise
        finally:
            await run.end()


async def _round(moved: _Moved, seconds: float) -> None:
    """Move, and let fail; then all faults are over, and the tenants are looked at."""
    run, rng, stop, loop = moved.run, moved.run.rng, asyncio.Event(), asyncio.get_running_loop()
    await run.together(_recovered(moved.w))
    until = loop.time() + seconds
    moving = asyncio.gather(*(lane.go(stop) for lane in moved.lanes), moved.walls.go(stop))
    try:
        for pause in (rng.uniform(0.5, 6), rng.uniform(0.1, 1.5)):
            await asyncio.sleep(pause)
            run.report.faults += await run.together(
                *(fault(run) for fault in choose(run, among=WHILE_MOVING))
            )
        await run.together(_within(moved, "after the faults", _writable))
        await asyncio.sleep(until - loop.time())
        stop.set()
        await run.together(_moved(moving))
        await run.together(_within(moved, "after the last command", _home))
    finally:
        stop.set()
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)


async def _recovered(w: World) -> None:
    """Wait until tenants may move again: what is written in one database is soon in the other."""
    await w.until_value(_IN_TIME, 1, SETTLE_SECONDS)
    await brought_back(w, SETTLE_SECONDS, drained=False)


async def _moved(moving: asyncio.Future[list[None]]) -> None:
    await moving


async def _within(moved: _Moved, told: str, until: Callable[[_Moved, UUID], Awaitable[None]]) -> None:
    """Wait for every tenant, and note how long that took; `Failed` where it was too long."""
    began = time.monotonic()

    async def one(tenant: UUID) -> float:
        try:
            async with asyncio.timeout(_NEVER):
                await until(moved, tenant)
        except TimeoutError:
            pass
        return time.monotonic() - began

    took = await asyncio.gather(*map(one, moved.tenants))
    limits = {tenant: lane.deadline for lane in moved.lanes for tenant in lane.tenants}
    worst, tenant = max(
        (seconds - limits.get(tenant, 0), tenant) for seconds, tenant in zip(took, moved.tenants, strict=True)
    )
    moved.report.worst = max(moved.report.worst, *took)
    if worst > moved.within:
        known = (await standing(moved.w, [tenant])).get(tenant)
        fence = await moved.w.client["crossfade"]["fence"].find_one({"_id.tenant": tenant})
        raise Failed(f"{tenant} is not at home, and writable, {worst:.1f} s {told}: {known}, {fence}")


async def _writable(moved: _Moved, tenant: UUID) -> None:
    while not await moved.writer.insert(tenant):  # noqa: ASYNC110 - databases make it true
        await asyncio.sleep(0.05)


async def _home(moved: _Moved, tenant: UUID) -> None:
    """Nobody moves it any more: it must be in one phase for good, and be written there."""
    while True:
        known = (await standing(moved.w, [tenant])).get(tenant)
        if known is not None and known.phase in _SETTLED:
            break
        await asyncio.sleep(0.05)
    await _writable(moved, tenant)


async def _at_rest(moved: _Moved) -> None:
    """Bring all to rest, and compare: with what was acknowledged, and both sides."""
    run, w, report, writer = moved.run, moved.w, moved.report, moved.writer
    await run.together(_settled(w))
    await _count(moved)
    at = await standing(w, moved.tenants)
    for lane in moved.lanes:
        if len({at[tenant] for tenant in lane.tenants}) > 1:
            raise Failed(f"a group has parted: {[at[tenant] for tenant in lane.tenants]}")
    sides = {tenant: "mongo" if known.phase == "mongo" else "postgres" for tenant, known in at.items()}
    if wrong := await writer.compare(sides):
        raise Failed(f"{len(wrong)} leads are not as acknowledged: {wrong[:5]}")
    if lost := writer.written.not_there:
        raise Failed(f"{len(lost)} writes did not find what had been acknowledged: {lost[:3]}")
    if both := two_writers(writer.written.accepted, await away(w)):
        raise Failed(f"{len(both)} writes were taken by the database that had not the tenant: {both[:5]}")
    if other := await w.value(_NOT_ROGUE):
        raise Failed(f"{other} dead letters that nobody caused")
    if rogue := await w.value(_STRANGERS, list(moved.walls.touched)):
        raise Failed(f"MongoDB took {rogue} writes through the client of tenants that had left")
    await w.execute(_DISCARD)  # so that their documents are compared too
    await assert_both_ways_equal(w)
    await run.together(w.until_value(_CLEAN.format(await w.value(_WALKED)), 1, SETTLE_SECONDS))
    for tenant in moved.tenants:
        if (takes := await moved.walls.both(tenant)) != [sides[tenant]]:
            raise Failed(f"{tenant} is in {at[tenant]}, and is taken by {takes or 'nobody'}")
    report.rogues, report.refused = moved.walls.rogues, moved.walls.refused
    for log in w.directory.glob("*.log"):
        if any(text in log.read_text() for text in _NEVER_TOLD):
            raise Failed(f"{log.stem} found that a decision had been forgotten")


async def _settled(w: World) -> None:
    await w.settled(SETTLE_SECONDS)
    await brought_back(w, SETTLE_SECONDS)
    await w.settled(SETTLE_SECONDS)  # the echoes of that


async def _count(moved: _Moved) -> None:
    report, written = moved.report, moved.writer.written
    report.changes, report.unclear = len(written.accepted), written.unclear
    report.errors = written.errors
    for name, before, after in (
        ("cutovers", "draining", "postgres"),
        ("rollbacks", "opening", "mongo"),
        ("aborted", "draining", "mongo"),
    ):
        query = (
            "SELECT count(*) FROM crossfade.transition WHERE from_phase::text = $1 AND to_phase::text = $2"
        )
        setattr(report, name, await moved.w.value(query, before, after))
    report.aborted += await moved.w.value(query, "rolling_back", "postgres")


async def _completed(moved: _Moved) -> None:
    """End the way back of some: they are written in PostgreSQL alone, and cannot go home."""
    at = await standing(moved.w, moved.tenants)
    away = [tenant for tenant in moved.tenants if at[tenant].phase == "postgres"]
    for tenant in away[: moved.run.rng.randint(0, len(away))]:
        code, told = await once(moved.w, "complete", str(tenant), "--yes")
        if code != 0 or await moved.walls.both(tenant) != ["postgres"]:
            raise Failed(f"{tenant} is not complete: {told}")
        code, told = await once(moved.w, "rollback", str(tenant))
        if code != 1 or "is in phase complete" not in told:
            raise Failed(f"{tenant} was complete, and is rolled back: {told}")
        moved.report.completed += 1
