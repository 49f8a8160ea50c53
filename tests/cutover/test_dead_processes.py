"""Publish, apply, reverse or control is killed while a tenant moves: it soon writes again, nothing is lost.

A rollback needs publish too: its floor comes through the change stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.edges import WITHIN, begins, bring, held, nowhere_else, writable, written
from tests.support.moving import epoch_of, looked_after, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services
from worker.failpoints import EXIT_CODE

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROLES = ("publish", "apply", "reverse", "control")
# Where the move stands, and where the tenant ends when the process does not come back.
EDGES = {
    "cutover.fenced": {"publish": "mongo", "apply": "mongo", "reverse": "postgres", "control": "postgres"},
    "rollback.closed": {
        "publish": "postgres",
        "apply": "postgres",
        "reverse": "postgres",
        "control": "mongo",
    },
    "rollback.decided": dict.fromkeys(ROLES, "mongo"),
}
PAUSE_AND_MORE = 1.0 + WITHIN  # a move aborts at its deadline, 1 s


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with looked_after(services, tmp_path_factory.mktemp("dead"), documents=150) as made:
        yield made


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("edge", EDGES)
async def test_a_process_that_dies_and_stays_dead(w: World, edge: str, role: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    ends, told = EDGES[edge][role], f"{role} dead at {edge}"
    # A move that needs not the process comes to its end, if a busy machine gives it the time.
    lasting = () if ends == begins(edge) else ("--deadline", "4")
    await bring(w, tenant, begins(edge))
    async with written(w, tenant, other):
        try:
            async with held(w, tenant, edge, 0.3, *lasting) as move:
                await w.kill(role)
                await writable(w, tenant, ends, told, since=move.since, within=PAUSE_AND_MORE)
                _, result = await move.ended()
                print(result)
                assert result["phase"] == ends and result["settled"], result
        finally:
            await w.start(role, role)
        await nowhere_else(w, tenant, ends)


@pytest.mark.parametrize("role", ["publish", "apply"])
async def test_no_pause_begins_for_a_rollback_that_could_not_end(w: World, role: str) -> None:
    tenant, _ = (await tenants_of(w))[:2]
    await bring(w, tenant, "postgres")
    epoch = await epoch_of(w, tenant)
    await w.kill(role)
    try:
        code, told = await once(w, "rollback", str(tenant))
        assert code == 1 and "what MongoDB has does not come to PostgreSQL within 1 s" in told, told
        assert await epoch_of(w, tenant) == epoch
    finally:
        await w.start(role, role)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("edge", "role"),
    [
        ("cutover.fenced", "publish"),
        ("cutover.fenced", "apply"),
        ("rollback.closed", "reverse"),
        ("rollback.closed", "control"),
    ],
)
async def test_a_process_that_dies_and_is_started_again(w: World, edge: str, role: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with written(w, tenant, other):
        async with held(w, tenant, edge) as move:
            await w.kill(role)
            await w.start(role, role)
            _, result = await move.ended()
            print(result)
            ends, told = result["phase"], f"{role} killed and started again at {edge}"
            await writable(w, tenant, ends, told, since=move.since, within=PAUSE_AND_MORE)
        await nowhere_else(w, tenant, ends)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("edge", "ends"),
    [("cutover.fenced", "mongo"), ("rollback.closed", "postgres"), ("rollback.decided", "mongo")],
)
async def test_control_dies_with_the_controller_and_is_started_again(w: World, edge: str, ends: str) -> None:
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with written(w, tenant, other):
        await w.kill("control")
        command = edge.partition(".")[0]
        code, told = await once(w, command, str(tenant), CROSSFADE_FAILPOINTS=f"{edge}=exit:1")
        if code == EXIT_CODE:
            assert await phase(w, tenant) in ("draining", "rolling_back", "opening")
        since = time.monotonic()
        await w.start("control", "control")
        assert code == EXIT_CODE, told
        await writable(w, tenant, ends, f"control dead with the controller at {edge}", since=since)
        await nowhere_else(w, tenant, ends)
