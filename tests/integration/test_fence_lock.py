"""Moves that fence take turns, and `control` tells a fence that is being set from a changed one."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.keeping import keeping
from tests.support.world import World
from worker.cutover.keeper import LOOK_EVERY
from worker.mongo.fence_documents import DATABASE, FenceDocuments
from worker.mongo.fence_lock import LOCKS, InTheWay, Turns
from worker.mongo.validators import FIRST_PATIENCE, Validators

_LOOKS = 4
_MENDED = "validators were not what the fences say; they are again"


def validators(w: World, turns: Turns | None = None) -> Validators:
    return Validators(w.client, w.mapping, w.name, "test", turns)


async def _held(w: World) -> Any:
    """Let another controller have the lock; return the collection that it is in."""
    locks = w.client[DATABASE][LOCKS]
    held = [{"$set": {"until": {"$add": ["$$NOW", 600_000]}, "attempt": None}}]
    await locks.update_one({"_id": w.name}, held, upsert=True)
    return locks


async def test_moves_of_one_command_take_turns(w: World) -> None:
    """Also while one of them has yet to take the lock: its pause may have begun."""
    turns, entered = Turns(), asyncio.Event()

    async def another() -> None:
        async with validators(w, turns).turn(5.0):
            entered.set()

    async with validators(w, turns).turn(5.0):
        waiting = asyncio.create_task(another())
        for _ in range(5):
            async with validators(w).turn(5.0):  # of other commands: nobody has the lock
                pass
        assert not entered.is_set()
    await asyncio.wait_for(waiting, 30)


async def test_a_turn_comes_when_nobody_has_the_lock(w: World) -> None:
    locks = await _held(w)
    with pytest.raises(InTheWay, match="another command"):
        async with validators(w).turn(0.3):
            raise AssertionError("nobody may begin a pause now")

    async def patient() -> None:
        async with validators(w).turn(60):
            assert await locks.find_one({"_id": w.name, "$expr": {"$lte": ["$until", "$$NOW"]}})

    with pytest.raises(InTheWay):  # nor is a list of validators computed beside another one's
        await validators(w).fence((), 0.3)
    waiting = asyncio.create_task(patient())
    await asyncio.sleep(0.3)
    await locks.update_one({"_id": w.name}, [{"$set": {"until": "$$NOW"}}])
    await waiting


async def test_patience_grows_until_a_whole_call_was_in_vain(w: World) -> None:
    """And begins anew: short tries find gaps that long ones leave no writer the time to make."""
    turns, leads, seen = Turns(), f"{w.name}.leads", list[float]()
    await validators(w, turns).fence((), 5.0)  # makes what is not there yet
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        for _ in range(3):
            with pytest.raises(InTheWay):
                await validators(w, turns).fence((), 2.0)
            seen.append(turns.patience[leads])
        await session.abort_transaction()
    await validators(w, turns).fence((), 5.0)
    assert leads not in turns.patience
    assert seen[0] > FIRST_PATIENCE and FIRST_PATIENCE in seen[1:], seen


async def test_healing_tells_what_was_wrong(w: World) -> None:
    tenant, leads = uuid4(), f"{w.name}.leads"
    assert await FenceDocuments(w.client, w.name).leave({tenant: 1}, {tenant: [tenant]}, "one")
    assert leads in await validators(w).heal(5.0)
    assert await validators(w).heal(5.0) == []
    await w.mongo.command({"collMod": "leads", "validator": {}})
    assert await validators(w).heal(5.0) == [leads]


async def test_control_tells_what_it_mended_though_another_collection_is_held(w: World) -> None:
    tenant = uuid4()
    await validators(w).fence((), 30)  # makes what is not there yet
    assert await FenceDocuments(w.client, w.name).leave({tenant: 1}, {tenant: [tenant]}, "one", lease=600)
    await validators(w).fence([tenant], 30)
    for name in ("leads", "users"):
        await w.mongo.command({"collMod": name, "validator": {}})

    def told(logs: Any, name: str) -> bool:
        return any(f"{w.name}.{name}" in one.get("collections", ()) for one in logs)

    with capture_logs() as logs:
        async with await w.client.start_session() as session:
            session.start_transaction()
            await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
            async with keeping(w):
                await w.until("users are mended", lambda: told(logs, "users"))
                assert not told(logs, "leads"), logs
                await session.abort_transaction()
                await w.until("leads are mended", lambda: told(logs, "leads"))
    assert not await validators(w).wrong()


async def test_control_does_not_set_a_fence_that_is_being_set(w: World) -> None:
    """Its controller has the lock, and may have to wait for open transactions."""
    tenant = uuid4()
    assert await FenceDocuments(w.client, w.name).leave({tenant: 1}, {tenant: [tenant]}, "one", lease=600)
    locks = await _held(w)

    def told(logs: Any, event: str) -> bool:
        return any(event in one["event"] for one in logs)

    with capture_logs() as logs:
        async with keeping(w):
            await asyncio.sleep(_LOOKS * LOOK_EVERY)  # in which it must not try
            assert not told(logs, "a collection of MongoDB"), logs
            await locks.update_one({"_id": w.name}, [{"$set": {"until": "$$NOW"}}])
            await w.until("control has set it", lambda: told(logs, _MENDED))
    assert not await validators(w).wrong()
