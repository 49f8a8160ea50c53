"""MongoDB elects another primary in the middle of a move: the tenant soon writes again, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from tests.support.edges import begins, bring, held, kept, nowhere_else, writable, written
from tests.support.moving import looked_after, tenants_of
from tests.support.replica_set import MEMBERS, ReplicaSet, replica_set
from tests.support.world import World
from worker.embedded import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")
# Where the move stands, how its primary goes, and where the tenant ends; None: in either.
ELECTIONS = [
    ("cutover.fenced", "killed", None),
    ("cutover.fenced", "steps down", None),
    ("cutover.verified", "killed", None),
    ("cutover.decided", "killed", "postgres"),
    ("rollback.closed", "killed", "postgres"),
    ("rollback.verified", "steps down", "mongo"),
    ("rollback.decided", "killed", "mongo"),
    ("rollback.decided", "frozen", "mongo"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def members(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ReplicaSet]:
    async with replica_set(tmp_path_factory.mktemp("set")) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(
    services: Services, members: ReplicaSet, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("elections")
    async with looked_after(services, directory, documents=150, mongo_uri=members.uri) as made:
        try:
            yield made
        finally:
            await members.healed()  # or the world's databases could not be removed


@pytest.mark.parametrize(("edge", "how", "ends"), ELECTIONS)
async def test_a_primary_goes(w: World, members: ReplicaSet, edge: str, how: str, ends: str | None) -> None:
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, begins(edge))
    async with kept(w), written(w, tenant, other, rate=20):
        old = await members.primary()
        async with held(w, tenant, edge) as move:
            await _goes(members, old, how)
            new = await members.primary(but=old)
            await _majority(members, new)
            since = time.monotonic()
            print(f"a majority writes again {since - move.since:.2f} s after the move stood at {edge}")
            told = f"the primary {how} at {edge}"
            if ends is not None:
                await writable(w, tenant, ends, told, since=since)
            _, result = await move.ended()
            print(result)
            if ends is None:
                await writable(w, tenant, result["phase"], told, since=since)
            assert result["phase"] == (ends or result["phase"]), result
        await members.healed()
        assert await members.primary() is not None and new != old
        await nowhere_else(w, tenant, result["phase"])


async def _majority(members: ReplicaSet, primary: int) -> None:
    """Wait until a majority takes writes: one that followed a frozen primary goes on doing so for a while."""
    async with members.client(primary) as client:
        concern = WriteConcern("majority", wtimeout=200)
        probes = client["probe"].get_collection("probe", write_concern=concern)
        while True:
            with suppress(PyMongoError):
                await probes.insert_one({})
                return
            await asyncio.sleep(0.05)


async def _goes(members: ReplicaSet, old: int, how: str) -> None:
    if how == "killed":
        await members.kill(old)
    elif how == "frozen":
        members.freeze(old)
    else:
        await members.elect(*(number for number in range(MEMBERS) if number != old))
