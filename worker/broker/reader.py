"""Reads a topic for a person: in no consumer group, so that nothing of the migration notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.broker.access import Access
from worker.errors import ServiceUnavailable

_POLL_MS = 500
_PATIENCE = 15.0  # seconds without a record that is known to be there


class Record(NamedTuple):
    """A record as it lies in its partition."""

    partition: int
    offset: int
    timestamp: int
    """Milliseconds since 1970, by Kafka."""
    key: bytes | None
    value: bytes | None


class TopicReader:
    """A place in each partition of one topic, that moves with what is read."""

    def __init__(self, kafka: Access, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._kafka = kafka
        self._consumer = consumer
        self._partitions = partitions

    async def newest(self, count: int) -> list[Record]:
        """Return the newest ``count`` records of all partitions together, oldest first.

        The place is then behind the last one; what arrived meanwhile is returned too, beyond ``count``.
        """
        first, ends = await self._bounds()
        for partition, end in ends.items():
            self._consumer.seek(partition, max(first[partition], end - count))
        found = sorted(
            [record async for record in self._up_to(ends)], key=lambda r: (r.timestamp, r.partition, r.offset)
        )
        ended = {partition.partition: end for partition, end in ends.items()}
        old = [record for record in found if record.offset < ended[record.partition]]
        new = [record for record in found if record.offset >= ended[record.partition]]
        return old[max(0, len(old) - count) :] + new

    async def all(self) -> AsyncIterator[Record]:
        """Yield every record from the oldest kept to the newest one of now; in order within a partition."""
        first, ends = await self._bounds()
        for partition, offset in first.items():
            self._consumer.seek(partition, offset)
        async for record in self._up_to(ends):
            yield record

    async def following(self) -> AsyncIterator[Record]:
        """Yield what arrives, without end."""
        while True:
            for record in await self._fetch():
                yield record

    async def _up_to(self, ends: dict[TopicPartition, int]) -> AsyncIterator[Record]:
        # By position, not by offsets seen: the last offsets of a partition may be no records (markers).
        clock = asyncio.get_running_loop()
        heard = clock.time()
        while any([await self._consumer.position(one) < end for one, end in ends.items()]):
            for record in await self._fetch():
                heard = clock.time()
                yield record
            if clock.time() - heard > _PATIENCE:
                raise ServiceUnavailable(
                    f"Kafka at {self._kafka.bootstrap} has delivered nothing for {_PATIENCE:.0f} s",
                    remedy="check the brokers: a partition may be without a leader",
                )

    async def _bounds(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return the first offset kept and the next offset to come, of each partition."""
        with _telling(self._kafka):
            return (
                await self._consumer.beginning_offsets(self._partitions),
                await self._consumer.end_offsets(self._partitions),
            )

    async def _fetch(self) -> list[Record]:
        with _telling(self._kafka):
            fetched: dict[TopicPartition, list[Any]] = await self._consumer.getmany(timeout_ms=_POLL_MS)
        return [
            Record(one.partition, one.offset, one.timestamp, one.key, one.value)
            for records in fetched.values()
            for one in records
        ]


@asynccontextmanager
async def reading(kafka: Access, topic: str, partitions: int) -> AsyncIterator[TopicReader]:
    """Open a topic that exists: asking for one that does not would make Kafka create it."""
    consumer = AIOKafkaConsumer(
        **kafka.options(),
        client_id="crossfade topics",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        with _telling(kafka):
            await consumer.start()
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        yield TopicReader(kafka, consumer, assigned)
    finally:
        await consumer.stop()


@contextmanager
def _telling(kafka: Access) -> Iterator[None]:
    # Around each request alone: the caller's own errors, a closed pipe among them, are not Kafka's.
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise kafka.unreachable(error) from None
