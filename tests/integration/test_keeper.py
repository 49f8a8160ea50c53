"""Many moves whose controllers died at once: `control` ends them together, and none waits for another."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from pymongo.errors import WriteError
from structlog.testing import capture_logs

from tests.support.keeping import keeping
from tests.support.moving import epoch_of
from tests.support.world import World
from worker.mongo.fence_documents import COLLECTION, DATABASE, FenceDocuments, State
from worker.mongo.validators import Validators

MANY = 8
WITHIN = 10.0  # seconds; a quarter of it on a quiet machine, and more than 14 when one waited for the other
_ADD = "INSERT INTO crossfade.tenant (tenant_id, phase, epoch) VALUES ($1, $2::text::crossfade.phase, $3)"
_AGAIN = "UPDATE crossfade.tenant SET phase = 'rolling_back', epoch = $2 WHERE tenant_id = $1"
_IN = "SELECT count(*) FROM crossfade.tenant WHERE tenant_id = ANY($1) AND phase::text = $2"
_OF_ANOTHER_FILE = "INSERT INTO crossfade.collection (namespace, mapping_hash) VALUES ($1, 'its')"
_WENT = "SELECT array_agg(to_phase::text ORDER BY epoch) FROM crossfade.transition WHERE tenant_id = $1"
FLOOR = 7 << 32
_LAST = UUID(int=2**128 - 1)  # behind all others in any order


@asynccontextmanager
async def _held_up(w: World) -> AsyncIterator[None]:
    """Let a transaction stand open, which every collMod of its collection waits for."""
    async with await w.client.start_session() as session:
        session.start_transaction()
        leads = w.mongo["leads"]
        await leads.insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        yield
        assert await leads.find_one(session=session), "MongoDB has ended it"
        await session.abort_transaction()


async def _fenced(w: World, fences: FenceDocuments, *more: UUID, lease: float = 600) -> list[UUID]:
    """Return tenants whom MongoDB refuses, by moves of epoch 1."""
    tenants = sorted([*(uuid4() for _ in range(MANY)), *more])
    assert await fences.leave(dict.fromkeys(tenants, 1), {t: [t] for t in tenants}, "one", lease)
    await Validators(w.client, w.mapping, w.name, "one").fence(tenants, 30)
    return tenants


async def _all_are(fences: FenceDocuments, tenants: Sequence[UUID], *states: State) -> bool:
    found = await fences.read()
    return all(found[one].state in states for one in tenants)


async def _are_in(w: World, tenants: Sequence[UUID], phase: str) -> bool:
    return await w.value(_IN, tenants, phase) == len(tenants)


async def _right(w: World) -> bool:
    return not await Validators(w.client, w.mapping, w.name, "test").wrong()


async def test_what_is_decided_does_not_wait_for_what_mongodb_does_not_do(
    w: World, fences: FenceDocuments
) -> None:
    """D4: PostgreSQL's part goes on though no collMod gets its collection."""
    back, left = _LAST, UUID(int=2**128 - 2)
    opening = [one for one in await _fenced(w, fences, left) if one != left]
    assert await fences.decide_left(dict.fromkeys([*opening, left], 1), "one")
    for tenant in opening:
        await w.execute(_ADD, tenant, "opening", 3)
    await w.execute(_ADD, left, "draining", 1)
    async with keeping(w):
        async with _held_up(w):
            await w.until_async("one has left", lambda: _are_in(w, [left], "postgres"))
            assert await _are_in(w, opening, "opening")
            await w.until_async("one opens", lambda: _all_are(fences, opening[:1], State.HOME))
            began = time.monotonic()
            await w.execute(_ADD, back, "rolling_back", 3)
            await w.until_async("it is back", lambda: _are_in(w, [back], "postgres"))
            seconds = time.monotonic() - began
            print(f"in PostgreSQL again after {seconds:.2f} s")
            assert seconds < WITHIN
            assert await _all_are(fences, opening, State.HOME)
            for epoch in (5, 7):  # looks, each of which might have let their phases follow
                await w.execute(_AGAIN, back, epoch)
                await w.until_async("it is back again", lambda: _are_in(w, [back], "postgres"))
            assert await _are_in(w, opening, "opening"), "MongoDB refuses them still"
        await w.until_async("they are home", lambda: _are_in(w, opening, "mongo"))
        await w.until_async("validators let them in", lambda: _right(w))


async def test_a_decision_that_postgresql_has_lost_is_taken_again(w: World, fences: FenceDocuments) -> None:
    """As after a failover to a standby that had not got it: nobody else could ever move the tenant."""
    lost, more, again, *others = tenants = await _fenced(w, fences)
    assert await fences.decide_left(dict.fromkeys(tenants, 1), "one")
    for one in others:
        await w.execute(_ADD, one, "postgres", 2)
    for one in (lost, more):
        await w.execute(_ADD, one, "rolling_back", 3)
    for one, epoch in ((lost, 4), (again, 4), (more, 8)):  # and PostgreSQL knows nothing of it any more
        assert await fences.come_back({one: epoch}, {one: FLOOR}, "one")
    place = {"_id": {"migration": w.name, "tenant": again}}
    long_ago = [{"$set": {"changed_at": {"$subtract": ["$$NOW", 60_000]}}}]
    assert (await w.client[DATABASE][COLLECTION].update_one(place, long_ago)).modified_count == 1
    await w.execute(_ADD, again, "rolling_back", 3)  # a rollback anew, of what it has taken meanwhile
    async with keeping(w):
        await w.until_async("it is home", lambda: _are_in(w, [lost], "mongo"))
        assert await w.value("SELECT floor FROM crossfade.tenant WHERE tenant_id = $1", lost) == FLOOR
        assert await epoch_of(w, lost) == 5
        assert "postgres" not in await w.value(_WENT, lost), "both databases would have taken its writes"
        assert await _right(w)
        assert await _are_in(w, [more, again], "rolling_back"), "what else it has lost, nobody knows"
        assert await _are_in(w, others, "postgres")


async def test_a_collection_that_is_made_anew_is_fenced_again(w: World, fences: FenceDocuments) -> None:
    """Neither a drop nor a rename is followed: a look finds what is there."""
    tenant = (await _fenced(w, fences))[0]
    lead = {"tenantId": tenant, "email": "a@b.example"}
    with pytest.raises(WriteError):
        await w.mongo["leads"].insert_one(dict(lead))
    await w.mongo["leads"].drop()
    await w.mongo["leads"].insert_one(dict(lead))  # nothing refuses it yet
    async with keeping(w):
        await w.until_async("it is fenced", lambda: _right(w))
        with pytest.raises(WriteError) as refused:
            await w.mongo["leads"].insert_one(dict(lead))
        assert refused.value.code == 121


async def test_it_tells_that_its_mapping_is_not_that_of_the_rows(w: World) -> None:
    """It would not mend what its file lacks."""
    told = {"event": "the mapping is in the way", "log_level": "warning"}
    again = {"event": "the mapping goes along again", "log_level": "info"}
    with capture_logs() as logs:
        async with keeping(w):
            await w.execute(_OF_ANOTHER_FILE, f"{w.name}.gone")
            await w.until("it tells", lambda: any(told.items() <= one.items() for one in logs))
            await w.execute("DELETE FROM crossfade.collection")
            await w.until("it is well again", lambda: again in logs)
    assert any(f"{w.name}.gone" in one.get("reason", "") for one in logs)


async def test_moves_that_are_overdue_are_aborted_at_once(w: World, fences: FenceDocuments) -> None:
    """D2: none of their controllers can decide any more, though a collMod has to wait."""
    tenants = await _fenced(w, fences, lease=0)
    async with keeping(w):
        async with _held_up(w):
            began = time.monotonic()
            done = State.ABORTING, State.HOME
            await w.until_async("all are aborting", lambda: _all_are(fences, tenants, *done))
            seconds = time.monotonic() - began
            print(f"aborting after {seconds:.2f} s")
            assert seconds < WITHIN
        await w.until_async("all are home", lambda: _all_are(fences, tenants, State.HOME))
        assert await _right(w)


@pytest.mark.parametrize("phase", ["mongo", "opening"])
async def test_one_whose_document_is_held_does_not_hold_up_the_others(
    w: World, fences: FenceDocuments, phase: str
) -> None:
    """Its controller was killed in the middle of a change, which MongoDB keeps open for a minute."""
    tenants = await _fenced(w, fences, lease=600 if phase == "opening" else 0)
    if phase == "opening":
        assert await fences.decide_left(dict.fromkeys(tenants, 1), "one")
        for tenant in tenants:
            await w.execute(_ADD, tenant, phase, 3)
    held, *others = tenants
    mine = {"_id": {"migration": w.name, "tenant": held}}
    async with await w.client.start_session() as session:
        session.start_transaction()
        documents = w.client[DATABASE][COLLECTION]
        await documents.update_one(mine, {"$set": {"holder": "one, killed"}}, session=session)
        async with keeping(w):
            began = time.monotonic()
            await w.until_async("the others are home", lambda: _all_are(fences, others, State.HOME))
            assert time.monotonic() - began < WITHIN
            assert not await _all_are(fences, [held], State.HOME)
            await session.abort_transaction()
            await w.until_async("so is it", lambda: _all_are(fences, tenants, State.HOME))
            await w.until_async("validators let them in", lambda: _right(w))
