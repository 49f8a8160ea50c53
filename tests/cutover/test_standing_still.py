"""Who stands still holds nothing for long: a controller in the pause, and apply in the middle of a batch."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from tests.support.edges import begins, bring, held, nowhere_else, writable, written
from tests.support.moving import looked_after, phase, tenants_of, until_phase
from tests.support.paused import paused
from tests.support.world import World, once
from worker.cutover.move import Options
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.failpoints import EXIT_CODE

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEASE = Options().lease
STILL = 8  # seconds: longer than a lease, and than all that is promised to follow it
# A batch shares the phases of its tenants until its end; this one has not gone on for a while.
IN_A_BATCH = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'
    AND application_name = 'crossfade apply' AND state_change < clock_timestamp() - interval '0.3 s'
"""
SHARED = """
SELECT count(*) = 0 FROM (
    SELECT FROM crossfade.tenant WHERE tenant_id = $1 FOR UPDATE SKIP LOCKED
) AS free
"""
HELD = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND (classid::bigint << 32 | objid::bigint) = hashtextextended($1, 1)
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
LAST = """
SELECT reason FROM crossfade.transition WHERE tenant_id = $1 ORDER BY transition_id DESC LIMIT 1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with looked_after(services, tmp_path_factory.mktemp("still"), documents=150) as made:
        yield made


@pytest.mark.parametrize(
    ("edge", "ends", "why"),
    [
        ("cutover.verified", "mongo", "another controller aborted it"),
        ("cutover.decided", "postgres", ""),
        ("rollback.closed", "postgres", "PostgreSQL did not go along"),
        ("rollback.verified", "postgres", "another controller took it back"),
        ("rollback.decided", "mongo", ""),
    ],
)
async def test_a_controller_stands_still_and_goes_on(w: World, edge: str, ends: str, why: str) -> None:
    """`control` ends what its holder does not bring to an end; that one finds out, and undoes nothing."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with written(w, tenant, other):
        async with held(w, tenant, edge, STILL) as move:
            overdue = move.since + LEASE
            await writable(w, tenant, ends, f"stands still at {edge}", since=overdue)
            await nowhere_else(w, tenant, ends)
            assert time.monotonic() < move.since + STILL, "it went on before"
            code, result = await move.ended()
            print(code, result)
            assert result["phase"] == ends and (code == 0) is (begins(edge) != ends), result
            assert result["reason"].startswith(why) and bool(result["reason"]) is bool(why), result
        await nowhere_else(w, tenant, ends)


@pytest.mark.parametrize(("edge", "then"), [("cutover.decided", "mongo"), ("rollback.decided", "postgres")])
async def test_another_move_follows_while_a_controller_stands_still(
    w: World, tmp_path: Path, edge: str, then: str
) -> None:
    """Nobody holds the tenant any more. The first says that its end is not the last, and runs no hook."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    hook = tmp_path / "after"
    async with written(w, tenant, other):
        after = f'test "$CROSSFADE_TRANSITION" = draining || touch {hook}'
        async with held(w, tenant, edge, 25, "--after", after, "--window", "60") as move:
            await nowhere_else(w, tenant, "postgres" if then == "mongo" else "mongo")
            await bring(w, tenant, then)
            assert time.monotonic() < move.since + 25, "it went on before"
            code, result = await move.ended()
            assert code == 1 and result["phase"] is None, result
            assert "another command has moved it since" in result["reason"], result
            assert not hook.exists()
        await nowhere_else(w, tenant, then)


async def test_who_waits_for_mongodb_is_heard(w: World) -> None:
    """It lives, and holds the tenant until it has ended the move itself, and told of its pause."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "postgres")
    async with written(w, tenant, other):
        async with held(w, tenant, "rollback.decided", 0.2) as move:
            with paused(w.services, "mongod"):
                await asyncio.sleep(2 * LEASE)  # longer than who says nothing may hold it
                assert await w.value(HELD, str(tenant)) == 1
            code, result = await move.ended()
            assert code == 0 and result["phase"] == "mongo", result
        await nowhere_else(w, tenant, "mongo")
    assert await w.value(LAST, tenant) == "rollback"


async def test_control_stands_still_with_a_tenant_in_its_hands(w: World) -> None:
    """Another `control` goes on with what it was ending for a dead controller."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "mongo")
    port = str(free_port(set()))
    async with written(w, tenant, other):
        await w.stop("control")
        try:
            await w.start(
                "control",
                "still",
                CROSSFADE_FAILPOINTS="cutover.aborting=hold:1:60",
                CROSSFADE_CONTROL_PORT=port,
            )
            await _dies_draining(w, tenant)
            log = w.directory / "still.log"
            await w.until("it holds", lambda: "cutover.aborting holds" in log.read_text())
            assert await phase(w, tenant) == "draining"
        finally:
            await w.start("control", "control")
        try:
            await until_phase(w, tenant, "mongo", seconds=20)
            await nowhere_else(w, tenant, "mongo")
        finally:
            await w.kill("still")


async def _dies_draining(w: World, tenant: UUID) -> None:
    async with asyncio.timeout(90):
        while True:
            code, told = await once(w, "cutover", str(tenant), CROSSFADE_FAILPOINTS="cutover.draining=exit:1")
            if code == EXIT_CODE:
                return
            assert code == 1, told  # a check does not hold yet


async def test_apply_stands_still_in_a_batch(w: World) -> None:
    """PostgreSQL ends its batch: the phase follows, and the batch is written when apply goes on."""
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "mongo")
    process = w.processes["apply"]
    async with written(w, tenant), held(w, tenant, "cutover.draining", 5) as move:
        try:
            await _stand_still_with(w, tenant, process)
            code, result = await move.ended()
            assert code == 1 and result["phase"] == "mongo", result
            await until_phase(w, tenant, "mongo", seconds=15)
            await nowhere_else(w, tenant, "mongo")
        finally:
            process.send_signal(signal.SIGCONT)


async def _stand_still_with(w: World, tenant: UUID, process: asyncio.subprocess.Process) -> None:
    """Let apply stand still while its batch has a tenant's phase."""
    while True:
        async with asyncio.timeout(30):
            while not await w.value(SHARED, tenant):  # noqa: ASYNC110 - another process's work
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.4)
        if await w.value(SHARED, tenant) and await w.value(IN_A_BATCH):
            return
        process.send_signal(signal.SIGCONT)
