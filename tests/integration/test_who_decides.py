"""Where decisions live (docs/protocol.md D1, D2, D5, D6): the fence documents and the validators' lock."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from pymongo.errors import OperationFailure

from tests.support.world import World
from worker.mongo import fence_documents
from worker.mongo.fence_documents import (
    COLLECTION,
    CONFLICTS_WITHIN,
    DATABASE,
    FenceDocuments,
    State,
    Unclear,
)
from worker.mongo.fence_lock import LOCKS, InTheWay
from worker.mongo.validators import Validators
from worker.postgres import phases

_LATER = 1.0  # seconds in which a try that nobody waits for would be sent
_PATIENT = 20_000  # milliseconds that a predecessor's collMod would wait


async def _leaves(fences: FenceDocuments, tenant: UUID, epoch: int, by: str = "one") -> bool:
    return await fences.leave({tenant: epoch}, {tenant: [tenant]}, by)


async def _state(fences: FenceDocuments, tenant: UUID) -> tuple[int, State]:
    found = (await fences.read())[tenant]
    return found.epoch, found.state


async def test_of_a_decision_and_an_abort_one_counts(fences: FenceDocuments) -> None:
    """D1: each is one compare-and-set, however they meet."""
    seen = set[State]()
    for number in range(60):
        tenant = uuid4()
        assert await _leaves(fences, tenant, 1)
        both = [fences.decide_left({tenant: 1}, "one"), fences.decide_abort({tenant: 1}, "two")]
        left, aborted = await asyncio.gather(*(both if number % 2 else reversed(both)))
        if not number % 2:
            left, aborted = aborted, left
        assert [left, aborted].count(True) == 1, (left, aborted)
        state = State.LEFT if left else State.ABORTING
        assert await _state(fences, tenant) == (1, state)
        assert not await fences.decide_abort({tenant: 1}, "two") or state is State.ABORTING
        assert not await fences.decide_left({tenant: 1}, "one")
        seen.add(state)
    assert seen == {State.LEFT, State.ABORTING}


async def test_a_decision_is_of_its_epoch_and_its_holder(fences: FenceDocuments) -> None:
    """D1, D6: who stood still, or was never there, decides nothing."""
    tenant = uuid4()
    assert await _leaves(fences, tenant, 3)
    for epoch in (2, 4):
        assert not await fences.decide_left({tenant: epoch}, "one")
        assert not await fences.decide_abort({tenant: epoch}, "one")
    assert not await fences.decide_left({tenant: 3}, "two")
    tenant = uuid4()
    assert await _leaves(fences, tenant, 1)
    assert await fences.decide_abort({tenant: 1}, "two")
    assert await fences.come_home({tenant: 1}, "two")
    assert await _leaves(fences, tenant, 2, "two")  # the next move, begun while the first holder stands still
    assert not await fences.decide_left({tenant: 1}, "one")
    assert not await fences.decide_abort({tenant: 1}, "one")
    assert not await fences.come_home({tenant: 1}, "one")
    assert await _state(fences, tenant) == (2, State.DRAINING)


async def test_a_group_decides_as_one(fences: FenceDocuments) -> None:
    """D1: when one of them was aborted, none has left."""
    one, two = uuid4(), uuid4()
    epochs = {one: 1, two: 1}
    assert await fences.leave(epochs, {one: [one], two: [two]}, "one")
    assert await fences.decide_abort({two: 1}, "two")
    assert not await fences.decide_left(epochs, "one")
    assert await _state(fences, one) == (1, State.DRAINING)


@pytest.mark.parametrize("comes_to_nothing", [True, False])
async def test_what_another_change_was_in_the_way_of_is_tried_again(
    w: World, fences: FenceDocuments, comes_to_nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: what was decided before counts; what came to nothing decides nothing."""
    monkeypatch.setattr(fence_documents, "CONFLICTS_WITHIN", 30.0)  # however busy the machine is
    tenant = uuid4()
    assert await _leaves(fences, tenant, 1)
    async with await w.client.start_session() as session:
        await _begins(w, session, tenant)
        before = await _aborted(w)
        deciding = asyncio.ensure_future(fences.decide_left({tenant: 1}, "one"))
        await w.until_async("it was in vain", lambda: _more(w, before))
        assert not deciding.done()
        await (session.abort_transaction() if comes_to_nothing else session.commit_transaction())
        assert await deciding is comes_to_nothing
    assert await _state(fences, tenant) == ((1, State.LEFT) if comes_to_nothing else (7, State.DRAINING))


async def test_who_stays_in_the_way_is_not_waited_for(w: World, fences: FenceDocuments) -> None:
    tenant = uuid4()
    assert await _leaves(fences, tenant, 1)
    async with await w.client.start_session() as session:
        await _begins(w, session, tenant)
        async with asyncio.timeout(CONFLICTS_WITHIN + 5):
            with pytest.raises(Unclear, match="does not end"):
                await fences.decide_left({tenant: 1}, "one")
        await session.abort_transaction()
    assert await _state(fences, tenant) == (1, State.DRAINING)


async def _begins(w: World, session: Any, tenant: UUID) -> None:
    """Change a fence document, and do not say yet what is to become of it."""
    session.start_transaction()
    place = {"_id": {"migration": w.name, "tenant": tenant}}
    await w.client[DATABASE][COLLECTION].update_one(place, {"$set": {"epoch": 7}}, session=session)


async def _aborted(w: World) -> int:
    return (await w.client.admin.command("serverStatus"))["transactions"]["totalAborted"]


async def _more(w: World, before: int) -> bool:
    return await _aborted(w) > before


async def test_an_abort_goes_through_the_document_though_it_is_home(fences: FenceDocuments) -> None:
    """D2: what the first controller sends late finds the move aborted; with a document of before, or none."""
    tenant = uuid4()
    for epoch in (1, 2):
        assert await fences.decide_abort({tenant: epoch}, "control")
        assert await fences.come_home({tenant: epoch}, "control")
        assert not await _leaves(fences, tenant, epoch)
        assert await _state(fences, tenant) == (epoch, State.HOME)
    assert await _leaves(fences, tenant, 3)


async def test_a_rollbacks_decision_opens_nothing_after_the_next_cutover(fences: FenceDocuments) -> None:
    """Whoever stood still between the two finds the document left by a later move."""
    tenant = uuid4()
    for epoch, opening in ((1, 3), (5, 7)):
        assert await _leaves(fences, tenant, epoch)
        assert await fences.decide_left({tenant: epoch}, "one")
        if epoch > 1:
            assert not await fences.come_back({tenant: 3}, {tenant: 30}, "stood still")
            assert await _state(fences, tenant) == (epoch, State.LEFT)
        assert await fences.come_back({tenant: opening}, {tenant: 30}, "one")


async def test_what_a_predecessor_sent_is_ended_first(w: World, fences: FenceDocuments) -> None:
    """D5: a collMod of a dead controller waits for its collection, and would take effect after the next."""
    tenant, attempt = uuid4(), "crossfade a dead controller's"
    assert await _leaves(fences, tenant, 1)
    validators = Validators(w.client, w.mapping, w.name, "test")
    await validators.fence([tenant], 5.0)
    fenced = (await w.mongo.command("listCollections", filter={"name": "leads"}))["cursor"]["firstBatch"][0]
    assert await fences.decide_abort({tenant: 1}, "control")
    await w.client[DATABASE][LOCKS].update_one({"_id": w.name}, {"$set": {"attempt": attempt}})
    late = {
        "collMod": "leads",
        "validator": fenced["options"]["validator"],
        "maxTimeMS": _PATIENT,
        "comment": attempt,
    }
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        sent = asyncio.ensure_future(w.mongo.command(late))
        pipeline = [{"$currentOp": {"allUsers": True}}, {"$match": {"command.comment": attempt}}]
        waits = lambda: w.client.admin.aggregate(pipeline).to_list(1)  # noqa: E731
        await w.until_async("it waits", waits)
        with pytest.raises(InTheWay):  # ours cannot have the collection either
            await validators.heal(0.2)
        with pytest.raises(OperationFailure, match="interrupted"):
            await asyncio.wait_for(sent, 5)
        await session.abort_transaction()
    await validators.heal(5.0)
    assert not await validators.wrong()


async def test_what_was_sent_is_ended_by_whoever_comes_to_that(w: World) -> None:
    """D5: also where the next one was broken off before it could."""
    validators, locks, spared = Validators(w.client, w.mapping, w.name, "test"), w.client[DATABASE][LOCKS], 0
    await validators.heal(5.0)
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        for number in range(10):
            attempt = f"crossfade a dead controller's {number}"
            await locks.update_one({"_id": w.name}, {"$set": {"attempt": attempt}})
            late = {"collMod": "leads", "validator": {}, "maxTimeMS": _PATIENT, "comment": attempt}
            sent = asyncio.ensure_future(w.mongo.command(late))
            pipeline = [{"$currentOp": {"allUsers": True}}, {"$match": {"command.comment": attempt}}]
            waits = lambda one=pipeline: w.client.admin.aggregate(one).to_list(1)  # noqa: E731
            await w.until_async("it waits", waits)
            healing = asyncio.create_task(validators.heal(1.0))
            while await locks.find_one({"_id": w.name, "attempt": attempt}):
                pass
            await asyncio.sleep(number * 0.001)
            healing.cancel()
            await asyncio.wait([healing])
            if await waits():
                spared += 1
                assert attempt in (await locks.find_one({"_id": w.name}))["left"]
            await validators.heal(5.0)
            with pytest.raises(OperationFailure, match="interrupted"):
                await asyncio.wait_for(sent, 5)
        await session.abort_transaction()
    assert spared, "each was ended by the one that was broken off"


async def test_nothing_is_sent_once_the_lock_was_given_back(w: World, fences: FenceDocuments) -> None:
    """D5: whoever is broken off twice no longer waits for its collMods, which rest between two tries."""
    tenant = uuid4()
    assert await _leaves(fences, tenant, 1)
    validators = Validators(w.client, w.mapping, w.name, "test")
    await validators.heal(5.0)
    await validators.restore(5.0)  # the collections are there, and refuse nobody
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        fencing = asyncio.create_task(validators.fence([tenant], 5.0))
        held = {"_id": w.name, "attempt": {"$ne": None}}
        await w.until_async("it has the lock", lambda: w.client[DATABASE][LOCKS].find_one(held))
        attempt = (await w.client[DATABASE][LOCKS].find_one(held))["attempt"]
        await asyncio.sleep(0.1)
        for _ in range(2):
            fencing.cancel()
            await asyncio.sleep(0)
        with suppress(asyncio.CancelledError):
            await fencing
        sent = [
            {"$currentOp": {"allUsers": True}},
            {"$match": {"command.comment": attempt}},
        ]

        async def none() -> bool:
            return not await w.client.admin.aggregate(sent).to_list(1)

        async def ended() -> bool:  # a thread that was about to send when it was broken off may do so
            return all([await none() for _ in range(100)])

        await w.until_async("what it had sent has ended", ended)
        later = time.monotonic() + _LATER
        while time.monotonic() < later:
            assert await none(), "one was sent"
        assert await fences.decide_abort({tenant: 1}, "control")
        await session.abort_transaction()
    await Validators(w.client, w.mapping, w.name, "other").heal(5.0)
    assert not await validators.wrong()


async def test_one_holds_a_tenants_move(w: World) -> None:
    """D6: of two controllers one is told so."""
    tenant, other = uuid4(), uuid4()
    one, two = await w.connect(), await w.connect()
    try:
        assert await phases.try_hold(one, [tenant])
        assert not await phases.try_hold(two, [other, tenant])
        assert await phases.try_hold(one, [other]), "whoever got not all of them holds none"
        one.terminate()
        await w.until_async("its session ends", lambda: phases.try_hold(two, [tenant]))
    finally:
        one.terminate()
        two.terminate()
