"""What crossfade-client knows of phases: heard, polled, bounded; and what it does while nobody answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from crossfade_client import Difference, PauseTooLong, PhaseUnknown, Router, Side, TooStale
from tests.support import moves
from tests.support.pooler import pooler
from tests.support.proxy import Proxy, proxy
from worker.embedded import Services

_ANY_AGE = 3600.0


@pytest_asyncio.fixture
async def move(services: Services, tmp_path: Path) -> AsyncIterator[moves.Moved]:
    async with moves.moved(services, tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def between(move: moves.Moved) -> AsyncIterator[Proxy]:
    """A network between the router and PostgreSQL."""
    async with proxy(int(move.dsn.rpartition(":")[2].partition("/")[0])) as made:
        yield made


def through(move: moves.Moved, port: int) -> str:
    return f"postgresql://application_role@127.0.0.1:{port}/{move.world.name}"


async def remembers(router: Router, tenant: UUID, phase: str, epoch: int) -> None:
    """Wait until the router has this in its memory, without being asked to look."""
    async with asyncio.timeout(moves.PATIENCE):
        while True:
            reading = await router.read(tenant, max_staleness=_ANY_AGE)
            if (reading.phase, reading.epoch) == (phase, epoch):
                return
            await asyncio.sleep(0.01)


async def test_a_change_is_heard(move: moves.Moved) -> None:
    async with Router(move.dsn, poll_every=_ANY_AGE) as router:
        assert (await router.read(move.tenant)).name == "mongo"
        await move.to("draining", 3)
        await remembers(router, move.tenant, "draining", 3)
        await move.to("postgres", 3)
        await remembers(router, move.tenant, "postgres", 3)


async def test_a_change_is_found_by_asking_alone(move: moves.Moved) -> None:
    async with Router(move.dsn, listen=False, poll_every=0.05) as router:
        await router.read(move.tenant)
        await move.to("postgres", 3)
        await remembers(router, move.tenant, "postgres", 3)


async def test_a_waiting_write_asks_by_itself(move: moves.Moved) -> None:
    """Without NOTIFY and between two polls, a pause lasts no longer than it must."""
    async with Router(move.dsn, listen=False, poll_every=_ANY_AGE) as router:
        await move.to("draining", 3)
        await move.fence_mongo(move.tenant)
        writing = asyncio.create_task(router.write(move.tenant, move.unit))
        await move.world.until("refused", lambda: bool(move.units))
        await move.to("postgres", 3)
        assert await writing == "postgres"


async def test_a_change_is_found_through_a_pooler(move: moves.Moved) -> None:
    async with (
        pooler(move.world, pool_size=2) as port,
        Router(through(move, port), listen=False, poll_every=0.05) as router,
    ):
        await router.read(move.tenant)
        await move.to("postgres", 3)
        await remembers(router, move.tenant, "postgres", 3)


async def test_a_change_during_a_cut_is_found_after_it(move: moves.Moved, between: Proxy) -> None:
    async with Router(through(move, between.port), poll_every=_ANY_AGE) as router:
        await router.read(move.tenant)
        between.refuses = True
        between.cut()
        await move.to("postgres", 3)
        assert (await router.read(move.tenant, max_staleness=_ANY_AGE)).phase == "mongo"
        between.refuses = False
        async with asyncio.timeout(moves.PATIENCE):  # the first who asks connects again
            while True:
                try:
                    assert (await router.read(move.tenant, max_staleness=0)).phase == "postgres"
                    break
                except TooStale:
                    await asyncio.sleep(0.05)
        await move.to("complete", 4)
        await remembers(router, move.tenant, "complete", 4)  # it listens again


async def test_only_so_many_tenants_are_remembered(move: moves.Moved) -> None:
    async with Router(move.dsn, remember=3) as router:
        for _ in range(20):
            await router.read(uuid4())
        assert len(router._known._states) == 3


async def test_reads_follow_the_phases(move: moves.Moved) -> None:
    async with Router(move.dsn) as router:
        for epoch, (phase, name) in enumerate(
            {
                "mongo": "mongo",
                "draining": "mongo",
                "aborting": "mongo",
                "postgres": "postgres",
                "rolling_back": "postgres",
                "opening": "mongo",
                "complete": "postgres",
            }.items()
        ):
            await move.to(phase, epoch)
            reading = await router.read(move.tenant, max_staleness=0)
            assert (reading.name, reading.phase, reading.epoch) == (name, phase, epoch)
            assert not reading.stale


async def test_reads_go_on_from_what_was_known_and_say_so(move: moves.Moved, between: Proxy) -> None:
    async with Router(through(move, between.port), max_staleness=0.2, poll_every=_ANY_AGE) as router:
        assert not (await router.read(move.tenant)).stale
        between.refuses = True
        between.cut()
        async with asyncio.timeout(moves.PATIENCE):
            while not (reading := await router.read(move.tenant)).stale:  # noqa: ASYNC110 - it ages
                await asyncio.sleep(0.05)
        assert reading.name == "mongo" and reading.age > 0.2
        with pytest.raises(TooStale) as told:
            await router.read(move.tenant, max_staleness=0.2)
        assert told.value.age > 0.2


async def test_a_tenant_that_was_never_heard_of_is_not_guessed(move: moves.Moved, between: Proxy) -> None:
    between.refuses = True
    async with Router(through(move, between.port)) as router:
        with pytest.raises(PhaseUnknown):
            await router.read(move.tenant)
        with pytest.raises(PhaseUnknown):
            await router.write(move.tenant, move.unit)
    async with Router(through(move, between.port), assume="mongo") as router:
        assert (await router.read(move.tenant)).stale
        assert await router.write(move.tenant, move.unit) == "mongo"


async def test_writes_go_on_while_postgresql_is_away(move: moves.Moved, between: Proxy) -> None:
    async with Router(through(move, between.port)) as router:
        await router.read(move.tenant)
        between.refuses = True
        between.cut()
        assert await router.write(move.tenant, move.unit) == "mongo"


@pytest.mark.parametrize("how", ["refuses", "silent"])
@pytest.mark.parametrize("phase", ["draining", "opening"])
async def test_an_abort_without_postgresql_lets_the_tenant_write(
    move: moves.Moved, between: Proxy, phase: str, how: str
) -> None:
    """Control opens MongoDB again while PostgreSQL is down, so no phase tells of it."""
    async with Router(through(move, between.port)) as router:
        await move.to(phase, 3)
        await move.fence_mongo(move.tenant)
        await remembers(router, move.tenant, phase, 3)
        writing = asyncio.create_task(router.write(move.tenant, move.unit))
        if how == "refuses":
            between.refuses = True
            between.cut()
        else:
            between.open.clear()
        await move.world.until("tried and refused", lambda: bool(move.units))
        await move.fence_mongo()
        opened = time.monotonic()
        assert await writing == "mongo"
        assert time.monotonic() - opened < 2
        between.open.set()


async def test_mongodb_is_not_tried_before_it_has_all_that_postgresql_has(
    move: moves.Moved, between: Proxy
) -> None:
    """What the way back is yet to bring would not be found there, and nothing would refuse that."""
    async with Router(through(move, between.port)) as router:
        await move.to("rolling_back", 4)
        await move.fence_mongo(move.tenant)
        await remembers(router, move.tenant, "rolling_back", 4)
        between.refuses = True
        between.cut()
        with pytest.raises(PauseTooLong):
            await router.write(move.tenant, move.unit, max_pause=0.5)
        assert move.units == []
        writing = asyncio.create_task(router.write(move.tenant, move.unit))
        between.refuses = False
        await move.to("postgres", 5)
        assert await writing == "postgres"
        assert [side.name for side in move.units] == ["postgres"]


async def test_a_fence_is_not_passed_while_postgresql_is_away(move: moves.Moved, between: Proxy) -> None:
    async with Router(through(move, between.port)) as router:
        await router.read(move.tenant)
        between.refuses = True
        between.cut()
        await move.fence_mongo(move.tenant)
        with pytest.raises(PauseTooLong):
            await router.write(move.tenant, move.unit, max_pause=0.5)
    assert await move.counts() == (0, 0)


async def test_shadow_reads_tell_ids_and_paths(move: moves.Moved) -> None:
    told: list[Difference] = []
    here = [{"_id": "a", "name": "Ada", "tags": {"x": 1}}, {"_id": "b", "name": "Bo"}]
    there = [{"_id": "b", "name": "Bo"}, {"_id": "a", "name": "Ada", "tags": {"x": 2}}, {"_id": "c"}]

    async def unit(side: Side) -> list[dict[str, object]]:
        return here if side.name == "mongo" else there

    async with Router(move.dsn) as router:
        router.shadows.settle, router.shadows.on_difference = 0, told.append
        assert await router.shadow_read(move.tenant, unit, share=1) == here
        await move.world.until("compared", lambda: bool(told))
        there[:] = here
        assert await router.shadow_read(move.tenant, unit, share=0) == here
        await router.shadow_read(move.tenant, unit, share=1)
        await move.world.until("equal", lambda: router.shadows.equal == 1)
        assert router.shadows.different == 1 and router.shadows.failed == 0
    assert told == [Difference(move.tenant, "mongo", 2, [("a", "tags.x"), ("c", "")])]


async def test_a_shadow_that_only_lags_is_no_difference(move: moves.Moved) -> None:
    answers = {"mongo": [[{"_id": 1, "n": 2}]] * 2, "postgres": [[{"_id": 1, "n": 1}], [{"_id": 1, "n": 2}]]}

    async def unit(side: Side) -> list[dict[str, int]]:
        return answers[side.name].pop(0)

    async with Router(move.dsn) as router:
        router.shadows.settle = 0
        await router.shadow_read(move.tenant, unit, share=1)
        await move.world.until("compared", lambda: router.shadows.unsettled == 1)
        assert (router.shadows.different, router.shadows.failed) == (0, 0)
