"""A collection is dropped in MongoDB while a tenant is away, or on its way: no move overlooks that."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.edges import bring, held
from tests.support.moving import looked_after, phase, tenants_of
from tests.support.signals import send
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once
from worker.embedded import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")
COPIES = "SELECT sum(copies) FROM crossfade.collection"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with looked_after(services, tmp_path_factory.mktemp("again"), documents=300) as made:
        yield made


async def _leads(w: World, tenant: object) -> int:
    return await w.mongo["leads"].count_documents({"tenantId": tenant})


async def test_a_rollback_waits_for_what_was_dropped(w: World) -> None:
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "postgres")
    before = await _leads(w, tenant)
    send(w.processes["apply"], signal.SIGSTOP)  # without it the copy does not end
    await w.mongo["leads"].drop()
    await w.until_value("SELECT bool_or(copy_state <> 'copied')::integer FROM crossfade.collection", 1)
    code, told = await once(w, "rollback", str(tenant))
    assert code == 1 and f"{w.name}.leads is " in told, told
    assert await phase(w, tenant) == "postgres"
    send(w.processes["apply"], signal.SIGCONT)
    code, told = await once(w, "rollback", str(tenant), "--window", "120")
    assert code == 0, told
    assert await _leads(w, tenant) == before > 0
    await brought_back(w)
    await w.settled()
    await assert_both_ways_equal(w)


@pytest.mark.parametrize("edge", ["cutover.draining", "rollback.closed"])
async def test_a_collection_is_dropped_while_a_tenant_moves(w: World, edge: str) -> None:
    tenant = (await tenants_of(w))[1]
    await bring(w, tenant, "mongo" if edge == "cutover.draining" else "postgres")
    before, copies = await _leads(w, tenant), await w.value(COPIES)
    async with held(w, tenant, edge, 1.0, "--deadline", "20") as move:
        await w.mongo["leads"].drop()
        code, result = await move.ended()
    assert code == 1 and ("copied again" in result["reason"] or ".leads is " in result["reason"]), result
    await w.until_value(COPIES, copies + 1)
    await w.until_value("SELECT bool_and(copy_state = 'copied')::integer FROM crossfade.collection", 1)
    await brought_back(w)
    await w.settled()
    # At home the application has dropped them; away they are PostgreSQL's, and come back.
    assert await _leads(w, tenant) == (0 if edge == "cutover.draining" else before)
