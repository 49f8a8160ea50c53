"""A service is lost while a tenant moves, and comes back: the tenant writes again, with nothing lost.

Where the other database can let it write alone, that does not wait for the return.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.support.edges import WITHIN, begins, bring, held, kept, nowhere_else, writable, written
from tests.support.moving import alone, begun_again, phase, tenants_of
from tests.support.paused import paused
from tests.support.world import World, once
from worker.embedded.state import ServiceName
from worker.failpoints import EXIT_CODE

pytestmark = pytest.mark.asyncio(loop_scope="module")
AWAY = 4.0  # seconds for which a service is away
PAUSE_AND_MORE = 1.0 + WITHIN  # a move aborts at its deadline, 1 s


class Lost(NamedTuple):
    """A loss, and where the tenant ends. ``waits``: only when the service is back.

    ``silence``: it is also tried with a service that stands still, whose connections stay open.
    """

    service: ServiceName
    edge: str
    ends: str
    waits: bool = False
    silence: bool = True


LOST = [
    Lost("kafka", "cutover.fenced", "mongo", silence=False),
    Lost("kafka", "rollback.closed", "postgres", silence=False),
    Lost("postgres", "cutover.fenced", "mongo"),
    Lost("postgres", "cutover.decided", "postgres", waits=True),
    Lost("postgres", "rollback.closed", "postgres", waits=True),
    Lost("postgres", "rollback.decided", "mongo", silence=False),
    Lost("mongod", "cutover.fenced", "mongo", waits=True),
    Lost("mongod", "cutover.decided", "postgres", silence=False),
    Lost("mongod", "rollback.closed", "postgres"),
    Lost("mongod", "rollback.decided", "mongo", waits=True),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with alone(tmp_path_factory.mktemp("lost")) as made:
        yield made


@pytest.mark.parametrize(
    ("lost", "how"),
    [(lost, how) for lost in LOST for how in ("killed", "frozen") if how == "killed" or lost.silence],
    ids=lambda value: f"{value.service}-{value.edge}" if isinstance(value, Lost) else value,
)
async def test_a_service_is_lost(w: World, lost: Lost, how: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    told = f"{lost.service} {how} at {lost.edge}"
    await bring(w, tenant, begins(lost.edge))
    async with kept(w), written(w, tenant, other, rate=30):
        async with held(w, tenant, lost.edge) as move:
            async with AsyncExitStack() as back:
                if how == "killed":
                    back.push_async_callback(begun_again, w, lost.service)
                    await w.services.kill(lost.service)
                else:
                    back.enter_context(paused(w.services, lost.service))
                if lost.waits:
                    await asyncio.sleep(AWAY)  # the fault's length, not a wait for anything
                else:
                    await writable(w, tenant, lost.ends, told, since=move.since, within=PAUSE_AND_MORE)
            since = time.monotonic()
            await writable(w, tenant, lost.ends, f"{told}, back", since=since)
            _, result = await move.ended()
            print(result)
            assert result["phase"] == lost.ends, result
        await nowhere_else(w, tenant, lost.ends)


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize(
    ("service", "edge", "ends"),
    [("postgres", "cutover.fenced", "mongo"), ("mongod", "rollback.closed", "postgres")],
)
async def test_a_service_and_the_controller_are_lost(
    w: World, service: ServiceName, edge: str, ends: str, how: str
) -> None:
    """`control` lets the tenant write by the other database alone."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with kept(w), written(w, tenant, other, rate=30):
        async with held(w, tenant, edge, 60) as move, AsyncExitStack() as back:
            if how == "killed":
                back.push_async_callback(begun_again, w, service)
                await w.services.kill(service)
            else:
                back.enter_context(paused(w.services, service))
            await move.kill()
            told = f"{service} {how}, the controller dead at {edge}"
            await writable(w, tenant, ends, told, since=move.since, within=PAUSE_AND_MORE)
        await nowhere_else(w, tenant, ends)


@pytest.mark.alone
async def test_control_is_started_while_mongodb_is_away(w: World) -> None:
    """A rollback whose controller died is taken back by PostgreSQL alone."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "postgres")
    await w.kill("control")
    async with written(w, tenant, other, rate=30):
        env = {"CROSSFADE_FAILPOINTS": "rollback.closed=exit:1"}
        code, told = await once(w, "rollback", str(tenant), "--window", "60", **env)
        try:
            await w.services.kill("mongod")
            since = time.monotonic()
            await w.start("control", "control")
            assert code == EXIT_CODE, told
            assert await phase(w, tenant) == "rolling_back"
            await writable(w, tenant, "postgres", "control started, MongoDB away", since=since)
        finally:
            await w.services.start("mongod")
        await nowhere_else(w, tenant, "postgres")
        async with kept(w):
            await w.until(
                "the processes run", lambda: all(p.returncode is None for p in w.processes.values())
            )
