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
from tests.support.moving import looked_after, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services
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
AWAY = 2.0  # seconds for which a service is away
PAUSE = 1.0  # a move aborts at its deadline


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("services")
    try:
        own = await Services.up(directory)
        async with looked_after(own, tmp_path_factory.mktemp("edges"), documents=150) as made:
            yield made
    finally:
        await Services.down(directory)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("edge", EDGES)
async def test_whatever_dies_here_the_tenant_writes_again(w: World, edge: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    async with kept(w), written(w, tenant, other):
        for dies in (*ROLES, *SERVICES, "the controller", "nothing, but a second controller comes"):
            await bring(w, tenant, begins(edge))
            arguments = ("--rehearse",) if edge == "cutover.aborting" else ()
            async with held(w, tenant, edge, 0.3, *arguments) as move:
                since = await _die(w, tenant, dies, edge, move)
                await _writes_again(w, tenant, f"{dies} at {edge}", move, since)
            await nowhere_else(w, tenant, await phase(w, tenant))


async def _die(w: World, tenant: UUID, dies: str, edge: str, move: Held) -> float:
    """Let something die; return when that, or the longest pause of the move, is over."""
    if dies in ROLES:
        await w.kill(dies)
        await w.start(dies, dies)
    elif dies in SERVICES:
        await w.services.kill(dies)
        await asyncio.sleep(AWAY)  # the fault's length, not a wait for anything
        await w.services.start(dies)
        if dies == "postgres":
            await w.execute("ANALYZE")  # a crash loses what the server knew of that
        return max(time.monotonic(), move.since + PAUSE)
    elif dies == "the controller":
        await move.kill()
    else:
        code, told = await once(w, edge.partition(".")[0], str(tenant))
        assert code in (0, 1), told
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
