"""What changes between a move's first look and its decision is seen, and aborts it. No `control` runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from pymongo.errors import WriteError

from tests.faults.test_lost_token import DAMAGED
from tests.support.edges import begins, bring, held
from tests.support.moving import application, fits_there, moves_over, moving, phase, tenants_of
from tests.support.way_back import assert_both_ways_equal, brought_back
from tests.support.world import World, once
from worker.embedded import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")
LETTER = """
INSERT INTO crossfade.dead_letter
    (state, kind, reason, namespace, tenant_id, topic, partition, "offset", event, batch_id)
VALUES ('dead', 'data', 'a test', $1, $2, 'a test', 0, -1, '', 1)
"""
NO_LETTER = "DELETE FROM crossfade.dead_letter WHERE reason = 'a test'"
FAULT = "INSERT INTO crossfade.way_back_fault VALUES ($1, 'unreadable', 'a.b', 'a row', 'a test')"
NO_FAULT = "DELETE FROM crossfade.way_back_fault WHERE reason = 'a test'"
ANOTHER = """
CREATE FUNCTION crossfade.another() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN NEW.incarnation = gen_random_uuid(); RETURN NEW; END$$;
CREATE TRIGGER another BEFORE INSERT ON crossfade.barrier FOR EACH ROW EXECUTE FUNCTION crossfade.another();
ALTER TABLE crossfade.barrier ENABLE ALWAYS TRIGGER another
"""
NO_OTHER = "DROP FUNCTION IF EXISTS crossfade.another CASCADE"
# As apply does it, but for the row.
CHANGED = """
WITH one AS (
    SELECT collection_id, row_id FROM crossfade.document d JOIN crossfade.collection c USING (collection_id)
    WHERE tenant_id = $1 AND namespace = $2 AND state = 'live' LIMIT 1
), spoiled AS (
    UPDATE leads SET name = name || ' ' FROM one WHERE id = row_id
), noted AS (
    INSERT INTO crossfade.draining_document SELECT tenant_id, epoch, collection_id, row_id
    FROM one, crossfade.tenant WHERE tenant_id = $1
)
UPDATE crossfade.document d SET version_time = version_time + 1 FROM one
WHERE (d.collection_id, d.row_id) = (one.collection_id, one.row_id)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    env = {"CROSSFADE_RECONCILE_FULL_EVERY": "2"}
    async with moving(services, tmp_path_factory.mktemp("pause"), documents=300, tenants=3, **env) as made:
        yield made


async def _letter(w: World, tenant: UUID) -> None:
    await w.execute(LETTER, f"{w.name}.leads", tenant)


async def _row(w: World, tenant: UUID) -> None:
    await w.spoil(CHANGED, tenant, f"{w.name}.leads")


async def _validators(w: World, tenant: UUID) -> None:
    await w.mongo.command({"collMod": "leads", "validator": {}})


async def _to_a_neighbour(w: World, tenant: UUID) -> None:
    """A lead moves to another tenant. MongoDB takes that, PostgreSQL does not."""
    await moves_over(w, tenant, (await tenants_of(w))[1])


async def _another_incarnation(w: World, tenant: UUID) -> None:
    """The barrier comes by a stream that began anew, whatever the reason."""
    await w.execute(ANOTHER)


async def _fault(w: World, tenant: UUID) -> None:
    await w.execute(FAULT, tenant)


async def _rogue(w: World, tenant: UUID) -> None:
    assert await w.mongo["leads"].find_one_and_delete({"tenantId": tenant})


@pytest.mark.parametrize(
    ("edge", "happens", "told"),
    [
        ("cutover.fenced", _letter, "1 of its events are dead letters"),
        ("cutover.fenced", _to_a_neighbour, "1 of its events are dead letters"),
        ("cutover.fenced", _row, "1 documents do not fit"),
        ("cutover.fenced", _another_incarnation, "the change stream began anew"),
        ("cutover.fenced", _validators, "its validators were changed"),
        ("rollback.closed", _fault, "is broken"),
        ("rollback.closed", _rogue, "1 writes in MongoDB are to be undone first"),
    ],
)
async def test_what_happens_in_the_pause_aborts_the_move(
    w: World, edge: str, happens: Callable[[World, UUID], Awaitable[Any]], told: str
) -> None:
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, begins(edge))
    async with held(w, tenant, edge, 0.5, "--deadline", "20") as move:
        await happens(w, tenant)
        code, result = await move.ended()
    assert code == 1 and told in result["reason"], result
    assert await phase(w, tenant) == begins(edge)
    for mend in (NO_LETTER, NO_FAULT, NO_OTHER):
        await w.execute(mend)
    if happens is _row:
        await w.until_value("SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'", 1)
        code, said = await once(w, "repair")
        assert code == 0, said
    if happens is _to_a_neighbour:
        await fits_there(w)
    await brought_back(w)
    await w.settled()
    await w.execute("DELETE FROM crossfade.dead_letter")  # rogue ones, which the way back has undone
    await assert_both_ways_equal(w)


async def test_a_broken_way_back_lets_nobody_home(w: World) -> None:
    one, two = (await tenants_of(w))[:2]
    await bring(w, one, "postgres")
    await bring(w, two, "mongo")
    await w.execute(FAULT, one)
    await w.execute(FAULT, two)
    try:
        code, told = await once(w, "rollback", str(one))
        assert code == 1 and f"the way back of tenant {one} is broken: a.b a row: a test" in told, told
        code, told = await once(w, "cutover", "check", str(two))
        (line,) = (one for one in told.splitlines() if " way-back " in one)
        assert code == 1 and line.startswith("FAILED") and "a.b a row: a test" in line, told
    finally:
        await w.execute(NO_FAULT)


async def test_a_neighbours_move_lets_nobody_in(w: World) -> None:
    """Validators are made from all fence documents: by a controller that knows of its own tenant alone."""
    one, two = (await tenants_of(w))[:2]
    await bring(w, one, "postgres")
    await bring(w, two, "mongo")
    await bring(w, two, "postgres")
    for tenant in (one, two):
        with pytest.raises(WriteError) as refused:
            await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"})
        assert refused.value.code == 121
    await bring(w, two, "mongo")
    with pytest.raises(WriteError):
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": one, "email": "a@b.example"})


async def test_a_rollback_leaves_a_floor(w: World) -> None:
    """A4: what a copy read before it changes nothing afterwards."""
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "postgres")
    before = await w.value("SELECT floor FROM crossfade.tenant WHERE tenant_id = $1", tenant)
    await bring(w, tenant, "mongo")
    floor = await w.value("SELECT floor FROM crossfade.tenant WHERE tenant_id = $1", tenant)
    told = await w.value(
        "SELECT evidence->>'floor' FROM crossfade.transition WHERE tenant_id = $1 AND to_phase = 'opening' "
        "ORDER BY transition_id DESC LIMIT 1",
        tenant,
    )
    assert floor > before and told == str(floor)


async def test_versions_of_the_way_back_begin_above_what_mongodb_knows(w: World) -> None:
    """R4: as where PostgreSQL was put back to an older state."""
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "postgres")
    lead = (await w.mongo["leads"].find_one({"tenantId": tenant}))["_id"]
    for name in ("first", "second"):
        if name == "second":
            assert await w.stop("reverse") == 0
            await w.value("SELECT setval('crossfade.reverse_version', 1)")
            await w.start("reverse", "reverse again")
        async with application(w, tenant) as app:
            assert await app.execute("UPDATE leads SET name = $1 WHERE id = $2", name, lead) == "UPDATE 1"
        await brought_back(w)
        assert (await w.mongo["leads"].find_one({"_id": lead}))["name"] == name
    cached = "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'crossfade.reverse_version'::regclass"
    assert await w.value(cached) == 1  # R2: drawn when they are read


async def test_the_stream_begins_anew_while_a_tenant_moves(w: World) -> None:
    tenant = (await tenants_of(w))[0]
    await bring(w, tenant, "mongo")
    async with held(w, tenant, "cutover.draining", 6, "--deadline", "60") as move:
        await w.kill("publish")
        await w.execute("UPDATE crossfade.checkpoint SET token = $1", DAMAGED["cut"])
        await w.start("publish", "publish anew")
        code, result = await move.ended(90)
    assert code == 1 and await phase(w, tenant) == "mongo", result
    print(result["reason"])
