"""Barriers of rollbacks, noted in MongoDB: many at once, writers broken off, and that they do not pile up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from tests.support.proxy import Proxy, proxy
from worker.embedded import Services
from worker.mongo import reverse
from worker.mongo.client import Client, connect
from worker.mongo.fence_documents import DATABASE
from worker.mongo.reverse import BARRIERS, BARRIERS_KEPT, Arrival
from worker.reverse.arrivals import Arrivals

_PARTITIONS = 40


@pytest_asyncio.fixture
async def between(services: Services) -> AsyncIterator[Proxy]:
    async with proxy(int(services.mongo_uri.rpartition(":")[2].partition("/")[0])) as one:
        yield one


@pytest_asyncio.fixture
async def client(between: Proxy) -> AsyncIterator[Client]:
    made = await connect(f"mongodb://127.0.0.1:{between.port}/?directConnection=true", "test")
    await reverse.prepare(made)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)  # it says goodbye through the proxy, which needs this thread


class Sent:
    """What clients write of barriers from now on; ``lost``: nothing of it comes to MongoDB."""

    def __init__(self, between: Proxy) -> None:
        self.writes, self.lost = 0, False
        between.watch = lambda: self._see

    def _see(self, piece: bytes, by_client: bool) -> bool:
        barrier = by_client and b"reverse_barrier" in piece and b"update" in piece
        self.writes += barrier
        return barrier and self.lost


@pytest.fixture
def sent(between: Proxy) -> Sent:
    return Sent(between)


def _arrival(barrier: UUID, partition: int) -> list[Arrival]:
    return [Arrival(barrier, "topic", partition, _PARTITIONS)]


async def test_those_that_come_together_are_written_together(sent: Sent, client: Client) -> None:
    arrivals, barrier = Arrivals(client), uuid4()
    await asyncio.gather(*(arrivals.note(_arrival(barrier, one)) for one in range(_PARTITIONS - 1)))
    assert sent.writes == 2  # the first one, and those that came meanwhile
    assert not await reverse.arrived(client, barrier)
    await arrivals.note(_arrival(barrier, _PARTITIONS - 1))
    assert await reverse.arrived(client, barrier)
    assert not await reverse.arrived(client, uuid4())


async def test_what_one_began_and_did_not_end_the_next_one_writes(sent: Sent, client: Client) -> None:
    arrivals, barrier = Arrivals(client), uuid4()
    sent.lost = True
    first, second, third = (asyncio.create_task(arrivals.note(_arrival(barrier, n))) for n in range(3))
    await _broken_off(sent, first)  # its write was its own; the others are of one
    await _broken_off(sent, second)
    sent.lost = False
    await third
    found = client[DATABASE][BARRIERS].find({"_id.barrier": barrier})
    assert sorted([one["_id"]["partition"] async for one in found]) == [1, 2]


async def _broken_off(sent: Sent, task: asyncio.Task[None]) -> None:
    """Cancel who writes, when the driver has tried in vain as often as it does by itself."""
    before = sent.writes
    async with asyncio.timeout(20):
        while sent.writes < before + 2:  # noqa: ASYNC110 - the proxy tells nobody
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_they_are_forgotten_after_an_hour(client: Client) -> None:
    indexes = await client[DATABASE][BARRIERS].index_information()
    assert [one.get("expireAfterSeconds") for one in indexes.values() if one["key"] == [("at", 1)]] == [
        BARRIERS_KEPT
    ]
    barrier = uuid4()
    await reverse.arrive(client, _arrival(barrier, 0))
    found = await client[DATABASE][BARRIERS].find_one({"_id.barrier": barrier})
    assert found is not None and found["at"] is not None


async def test_they_are_found_by_the_index(client: Client) -> None:
    for _ in range(50):
        barrier = uuid4()
        await reverse.arrive(client, [one for n in range(4) for one in _arrival(barrier, n)])
    before = await client.admin.command("serverStatus")
    assert not await reverse.arrived(client, barrier)
    after = await client.admin.command("serverStatus")
    scanned = [one["metrics"]["queryExecutor"]["scannedObjects"] for one in (before, after)]
    assert scanned[1] - scanned[0] < 100
