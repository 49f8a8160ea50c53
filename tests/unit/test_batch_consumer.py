"""What Faust does silently: it goes on where a seek was not done, and delivers what was fetched before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from worker.broker import batch_consumer
from worker.broker.batch_consumer import BatchConsumer


class _Slow(BatchConsumer):
    def __init__(self) -> None:
        self.app = SimpleNamespace(consumer_generation_id=1)
        self.told = 0
        self._read_offset: dict[Any, int | None] = {}

    async def seek_to_committed(self) -> Mapping[Any, int]:
        await asyncio.sleep(60)
        return {}

    def too_slow(self) -> None:
        self.told += 1


async def test_a_seek_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_consumer, "SEEK_WITHIN", 0.05)
    consumer = _Slow()
    with pytest.raises(TimeoutError):
        await consumer.perform_seek()
    assert consumer.told == 1


class _Reading(BatchConsumer):
    """Whose answer from Kafka comes when something has happened since it was asked for."""

    def __init__(self, happens: Callable[[_Reading], Any]) -> None:
        self.app = SimpleNamespace(consumer_generation_id=1)
        self._read_offset: dict[Any, int | None] = {}
        self._committed_offset: dict[Any, int | None] = {}
        self._buffered_partitions = set()
        self._happens = happens

    flow_active = True
    should_stop = False

    async def seek_to_committed(self) -> Mapping[Any, int]:
        return {}

    def _to_message(self, tp: TP, record: Any) -> Any:
        return SimpleNamespace()

    async def _wait_next_records(self, timeout: float) -> Any:
        if (happening := self._happens(self)) is not None:
            await happening
        return {TP("topic", 0): [object()]}, None

    async def polled(self) -> tuple[int, int]:
        """Return how many chunks were delivered, and how many seeks there have been by then."""
        return len([one async for one in self.getmany(1.0)]), self._seeks


def _rebalance(consumer: _Reading) -> None:
    consumer.app.consumer_generation_id += 1


async def test_nothing_is_delivered_that_was_fetched_before_its_place_was_sought() -> None:
    """Faust fetches from where the group has committed, while PostgreSQL is still asked where it stands."""
    consumer = _Reading(lambda _: None)
    assert await consumer.polled() == (0, 1)
    assert await consumer.polled() == (1, 1)


@pytest.mark.parametrize("happens", [_rebalance, _Reading.perform_seek])
async def test_what_was_fetched_before_a_rebalance_or_seek_is_not_delivered_after_it(
    happens: Callable[[_Reading], Any],
) -> None:
    consumer = _Reading(happens)
    await consumer.perform_seek()
    delivered, seeks = await consumer.polled()
    assert delivered == 0 and seeks > 1  # Kafka goes on behind what was dropped


def test_the_worker_gives_up_before_faust_does() -> None:
    from worker.apply.worker import OFFSETS_WITHIN

    assert OFFSETS_WITHIN < batch_consumer.SEEK_WITHIN < 30
