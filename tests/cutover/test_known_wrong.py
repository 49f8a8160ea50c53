"""What is known to be wrong stops a move, though a generation was clean, and nothing has changed since."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.moving import cutover, fits_there, moves_over, moving, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPOIL = """
UPDATE leads SET name = name || ' ' WHERE id = (SELECT min(id::text)::uuid FROM leads WHERE tenant_id = $1)
"""
FULL_SINCE = """
SELECT count(*) FROM crossfade.generation f WHERE kind = 'full' AND finished_at IS NOT NULL AND unclean = '{}'
    AND began_time > (SELECT max(version_time) FROM crossfade.document)
"""
NOTE = """
INSERT INTO crossfade.mismatch (namespace, row_id, collection, tenant_id, state, kind, reason, fields,
    generation, first_seen_at, since, checked_at, changes, observed_time, seen_moment)
SELECT $1, min(id::text)::uuid, $1, $2, 'settling', 'different', 'a test', '[]', 1, now(), now(), now(), 0, 0,
    (SELECT max(ended_moment) + 1 FROM crossfade.generation)
FROM leads WHERE tenant_id = $2
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    env = {"CROSSFADE_RECONCILE_FULL_EVERY": "2"}
    async with moving(services, tmp_path_factory.mktemp("wrong"), documents=300, **env) as made:
        yield made


async def test_a_document_that_does_not_fit_for_certain(w: World) -> None:
    tenant = (await tenants_of(w))[0]
    await w.spoil(SPOIL, tenant)
    await w.until_value("SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'", 1)
    code, told = await once(w, "cutover", "check", str(tenant))
    (line,) = (one for one in told.splitlines() if " clean " in one)
    assert code == 1 and line.startswith("FAILED") and "1 documents of it do not fit" in line, told
    code, (result,) = await cutover(w, str(tenant))
    assert code == 1 and await phase(w, tenant) == "mongo", result
    code, told = await once(w, "repair")
    assert code == 0, told
    code, results = await cutover(w, str(tenant), "--window", "90")
    assert code == 0, results


async def test_a_document_that_is_looked_at_again_just_now(w: World) -> None:
    """Nobody knows yet whether it is wrong; the ledger knows no change since the clean generation."""
    tenant = (await tenants_of(w))[1]
    assert await w.stop("reconcile") == 0
    await w.spoil(SPOIL, tenant)
    await w.execute(NOTE, f"{w.name}.leads", tenant)
    code, (result,) = await cutover(w, str(tenant))
    assert code == 1 and "1 documents do not fit" in result["reason"], result
    await w.start("reconcile", "reconcile again")
    await w.until_value("SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'", 1)
    code, told = await once(w, "repair")
    assert code == 0, told


async def test_a_document_that_goes_to_a_neighbour_and_does_not_fit_there(w: World) -> None:
    """The dead letter is the neighbour's; the row is still the tenant's, and nobody has compared it since."""
    _, other, tenant = await tenants_of(w)
    assert await w.stop("reconcile again") == 0
    await moves_over(w, tenant, other)
    await w.until_value("SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead'", 1)
    code, (result,) = await cutover(w, str(tenant))
    assert code == 1 and "dead-letters: 1 stand of it" in result["reason"], result
    # One of long ago is not looked for by its document, but the document is looked at.
    await w.execute("UPDATE crossfade.dead_letter SET first_seen_at = first_seen_at - interval '1 hour'")
    code, (result,) = await cutover(w, str(tenant))
    assert code == 1 and "1 documents do not fit" in result["reason"], result
    await fits_there(w)
    await w.until_value("SELECT (count(*) = 0)::integer FROM crossfade.dead_letter WHERE state = 'dead'", 1)
    await w.settled()
    await w.start("reconcile", "reconcile")


async def test_a_batch_is_rolled_back_between_the_checks_and_the_move(w: World) -> None:
    tenant = (await tenants_of(w))[2]
    lead = await w.mongo["leads"].find_one_and_update({"tenantId": tenant}, {"$set": {"name": "new"}})
    await w.settled()
    batch = await w.value("SELECT batch_id FROM crossfade.document WHERE row_id = $1", lead["_id"])
    await w.until_value(FULL_SINCE, 1)
    hold = f"{sys.executable} -m worker batches rollback {batch} --hold --yes"
    only = f'test "$CROSSFADE_TRANSITION" = draining || exit 0; {hold}'
    code, (result,) = await cutover(w, str(tenant), "--before", only, "--window", "0")
    assert code == 1 and "documents do not fit" in result["reason"], result
    assert await phase(w, tenant) == "mongo"
    code, told = await once(w, "batches", "refetch")
    assert code == 0, told
    code, results = await cutover(w, str(tenant), "--window", "90")
    assert code == 0, results
    await w.settled()
    assert await w.unequal() == []
