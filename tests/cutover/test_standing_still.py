"""Who stands still holds nothing for long: a controller in the pause, and apply in the middle of a batch."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from tests.support.edges import begins, bring, held, nowhere_else, writable, written
from tests.support.moving import looked_after, phase, tenants_of, until_phase
from tests.support.world import World, once
from worker.cutover.move import Options
from worker.embedded import Services
from worker.embedded.state import free_port
from worker.failpoints import EXIT_CODE

pytestmark = pytest.mark.asyncio(loop_scope="module")
LEASE = Options().lease
STILL = 9  # seconds: longer than a lease, and than all that is promised to follow it
# Whether somebody has its phase: a batch shares it until its end.
IN_A_BATCH = """
SELECT count(*) = 0 FROM (
    SELECT FROM crossfade.tenant WHERE tenant_id = $1 FOR UPDATE SKIP LOCKED
) AS free
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with looked_after(services, tmp_path_factory.mktemp("still"), documents=150) as made:
        yield made


@pytest.mark.parametrize(
    ("edge", "ends"),
    [
        ("cutover.verified", "mongo"),
        ("cutover.decided", "postgres"),
        ("rollback.closed", "postgres"),
        ("rollback.verified", "postgres"),
        ("rollback.decided", "mongo"),
    ],
)
async def test_a_controller_stands_still_and_goes_on(w: World, edge: str, ends: str) -> None:
    """`control` ends what its holder does not bring to an end; that one finds out, and undoes nothing."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with written(w, tenant, other):
        async with held(w, tenant, edge, STILL) as move:
            overdue = move.since + LEASE
            await writable(w, tenant, ends, f"stands still at {edge}", since=overdue)
            await nowhere_else(w, tenant, ends)
            assert time.monotonic() < move.since + STILL, "it went on before"
            # Nobody holds it: another move is made at once, and the first does not upset it.
            await bring(w, tenant, moved := "postgres" if ends == "mongo" else "mongo")
            code, result = await move.ended()
            print(code, result)
            assert result["phase"] == ends and (code == 0) is (begins(edge) != ends), result
        await nowhere_else(w, tenant, moved)


async def test_control_stands_still_with_a_tenant_in_its_hands(w: World) -> None:
    """Another `control` goes on with what it was ending for a dead controller."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "mongo")
    await w.stop("control")
    async with written(w, tenant, other):
        code, told = await once(w, "cutover", str(tenant), CROSSFADE_FAILPOINTS="cutover.draining=exit:1")
        assert code == EXIT_CODE, told
        still = "cutover.aborting=hold:1:60"
        await w.start(
            "control", "still", CROSSFADE_FAILPOINTS=still, CROSSFADE_CONTROL_PORT=str(free_port(set()))
        )
        try:
            await w.until(
                "it holds", lambda: "cutover.aborting holds" in (w.directory / "still.log").read_text()
            )
            assert await phase(w, tenant) == "draining"
            await w.start("control", "control")
            await until_phase(w, tenant, "mongo", seconds=20)
            await nowhere_else(w, tenant, "mongo")
        finally:
            await w.kill("still")


async def test_apply_stands_still_in_a_batch(w: World) -> None:
    """PostgreSQL ends its batch: the phase follows, and the batch is written when apply goes on."""
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "mongo")
    await w.stop("apply")
    await w.start("apply", "apply", CROSSFADE_FAILPOINTS="apply.before_commit=hold:100000:0.1")
    process = w.processes["apply"]
    try:
        async with written(w, tenant):
            async with held(w, tenant, "cutover.draining", 3) as move:
                await _stand_still_with(w, tenant, process)
                code, result = await move.ended()
                assert code == 1 and result["phase"] == "mongo", result
                await until_phase(w, tenant, "mongo", seconds=15)
                await nowhere_else(w, tenant, "mongo")
            process.send_signal(signal.SIGCONT)
    finally:
        process.send_signal(signal.SIGCONT)
        await w.stop("apply")
        await w.start("apply", "apply")


async def _stand_still_with(w: World, tenant: UUID, process: asyncio.subprocess.Process) -> None:
    """Let apply stand still while its batch has a tenant's phase."""
    while True:
        async with asyncio.timeout(30):
            while not await w.value(IN_A_BATCH, tenant):  # noqa: ASYNC110 - another process's work
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        if await w.value(IN_A_BATCH, tenant):
            return
        process.send_signal(signal.SIGCONT)
