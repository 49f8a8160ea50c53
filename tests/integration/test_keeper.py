"""Many moves whose controllers died at once: `control` ends them together, and none waits for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest_asyncio

from tests.support.world import World, settings, world
from worker.cutover.ground import opened
from worker.cutover.keeper import Keeper
from worker.embedded import Services
from worker.mongo.fence_documents import FenceDocuments, State
from worker.mongo.validators import Validators

MANY = 8
WITHIN = 5.0  # seconds in which a tenant must be writable
_ADD = "INSERT INTO crossfade.tenant (tenant_id, phase, epoch) VALUES ($1, $2::text::crossfade.phase, 3)"
_IN = "SELECT count(*) FROM crossfade.tenant WHERE tenant_id = ANY($1) AND phase::text = $2"


@pytest_asyncio.fixture
async def w(services: Services, tmp_path: Path) -> AsyncIterator[World]:
    async with world(services, tmp_path) as made:
        yield made


@asynccontextmanager
async def _keeping(w: World) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with opened(settings(w), "control", alone=True) as ground:
        keeping = asyncio.create_task(Keeper(ground).run(stop))
        try:
            yield
        finally:
            stop.set()
            await keeping


@asynccontextmanager
async def _held_up(w: World) -> AsyncIterator[None]:
    """Let a transaction stand open, which every collMod of its collection waits for."""
    async with await w.client.start_session() as session:
        session.start_transaction()
        await w.mongo["leads"].insert_one({"_id": uuid4(), "tenantId": uuid4()}, session=session)
        yield
        await session.abort_transaction()


async def _fenced(w: World, lease: float = 600) -> list[UUID]:
    """Return tenants whom MongoDB refuses, by moves of epoch 1."""
    tenants = sorted(uuid4() for _ in range(MANY))
    epochs = dict.fromkeys(tenants, 1)
    assert await FenceDocuments(w.client, w.name).leave(epochs, {t: [t] for t in tenants}, "one", lease)
    await Validators(w.client, w.mapping, w.name, "one").fence(tenants, 30)
    return tenants


async def _all_are(w: World, tenants: Sequence[UUID], *states: State) -> bool:
    found = await FenceDocuments(w.client, w.name).read()
    return all(found[one].state in states for one in tenants)


async def test_a_rollback_is_taken_back_though_mongodb_does_not_open_for_others(w: World) -> None:
    """D4: what PostgreSQL decides alone does not wait for MongoDB."""
    opening, back = await _fenced(w), UUID(int=2**128 - 1)
    assert await FenceDocuments(w.client, w.name).decide_left(dict.fromkeys(opening, 1), "one")
    for tenant in opening:
        await w.execute(_ADD, tenant, "opening")
    async with _keeping(w):
        async with _held_up(w):
            await w.until_async("one opens", lambda: _all_are(w, opening[:1], State.HOME))
            began = time.monotonic()
            await w.execute(_ADD, back, "rolling_back")
            await w.until_async("it is back", lambda: _are_in(w, [back], "postgres"))
            seconds = time.monotonic() - began
            print(f"in PostgreSQL again after {seconds:.2f} s")
            assert seconds < WITHIN
            assert await _all_are(w, opening, State.HOME)
        began = time.monotonic()
        await w.until_async("they are home", lambda: _are_in(w, opening, "mongo"))
        await w.until_async("validators let them in", lambda: _right(w))
        assert time.monotonic() - began < WITHIN


async def test_moves_that_are_overdue_are_aborted_at_once(w: World) -> None:
    """D2: none of their controllers can decide any more, though a collMod has to wait."""
    tenants = await _fenced(w, lease=0)
    async with _held_up(w), _keeping(w):
        began = time.monotonic()
        await w.until_async("all are aborting", lambda: _all_are(w, tenants, State.ABORTING, State.HOME))
        seconds = time.monotonic() - began
    print(f"aborting after {seconds:.2f} s")
    assert seconds < WITHIN


async def _are_in(w: World, tenants: Sequence[UUID], phase: str) -> bool:
    return await w.value(_IN, tenants, phase) == len(tenants)


async def _right(w: World) -> bool:
    return not await Validators(w.client, w.mapping, w.name, "test").wrong()
