"""Whatever dies, at every edge of a move: the tenant soon writes again, in one place, with nothing lost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import pytest
import pytest_asyncio

from tests.support.edges import WITHIN, WRITES, Held, Silent, begins, bring, held, kept, nowhere_else, written
from tests.support.moving import alone, begun_again, phase, tenants_of
from tests.support.world import World, once
from worker.embedded.state import ServiceName

LONG = bool(os.environ.get("LONG_FAULTS"))
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not LONG, reason="a long form; most edges have tests of their own beside it"),
]
EDGES = (
    "cutover.draining",
    "cutover.fence_decided",
    "cutover.fenced",
    "cutover.verified",
    "cutover.decided",
    "cutover.aborting",
    "rollback.closed",
    "rollback.verified",
    "rollback.decided",
)
ROLES = ("publish", "apply", "reverse", "control")
SERVICES: tuple[ServiceName, ...] = ("kafka", "mongod", "postgres")
CONTROLLER, SECOND = "the controller", "nothing, but a second controller comes"
AWAY = 2.0  # seconds for which a service is away
PAUSE = 1.0  # a move aborts at its deadline


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with alone(tmp_path_factory.mktemp("edges")) as made:
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("edge", EDGES)
async def test_whatever_dies_here_the_tenant_writes_again(w: World, edge: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    async with kept(w), written(w, tenant, other):
        for dies in (*ROLES, *SERVICES, CONTROLLER, SECOND):
            await bring(w, tenant, begins(edge))
            arguments = ("--rehearse",) if edge == "cutover.aborting" else ()
            async with held(w, tenant, edge, 0.3, *arguments) as move:
                second = None
                if dies == SECOND:  # beside the writes: it takes its time to start
                    second = asyncio.create_task(once(w, edge.partition(".")[0], str(tenant)))
                since = await _die(w, dies, move)
                await _writes_again(w, tenant, f"{dies} at {edge}", move, since)
                if second is not None:
                    code, told = await second
                    assert code in (0, 1), told
            await nowhere_else(w, tenant, await phase(w, tenant))


async def _die(w: World, dies: str, move: Held) -> float:
    """Let something die; return when that, or the longest pause of the move, is over."""
    if dies in ROLES:
        await w.kill(dies)
        await w.start(dies, dies)
    elif dies in SERVICES:
        await w.services.kill(dies)
        await asyncio.sleep(AWAY)  # the fault's length, not a wait for anything
        await begun_again(w, dies)
        return max(time.monotonic(), move.since + PAUSE)
    elif dies == CONTROLLER:
        await move.kill()
    return move.since + PAUSE


async def _writes_again(w: World, tenant: UUID, told: str, move: Held, since: float) -> None:
    """Write in both databases until the move is over; see that neither's refusing lasted."""
    over = asyncio.create_task(move.over())
    longest, last, home = 0.0, since, ""
    try:
        while not (home in ("mongo", "postgres") and over.done() and last > since):
            await asyncio.sleep(0.03)
            taken = False
            for write in WRITES.values():
                with suppress(Silent):
                    taken = taken or await write(w, tenant)
            now = time.monotonic()
            if taken or now - last > 60:
                longest, last = max(longest, now - last), max(now, since)
            home = await phase(w, tenant)
            assert longest < WITHIN, f"{told}: writable nowhere for {longest:.2f} s\n{w._logs()}"
    finally:
        over.cancel()
    print(f"{told}: in {home}, writable nowhere for {longest:.2f} s at most")
