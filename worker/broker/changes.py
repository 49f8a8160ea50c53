"""Which documents were changed, as the stream's topics tell: read in no group, up to where apply has read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from topics import EnvelopeError, decode, document_key
from worker.broker.access import Access
from worker.errors import Transient

Partition = tuple[str, int]
_POLL_MS = 200


class Lost(Exception):
    """Kafka no longer has some of the changes."""


class Changes(NamedTuple):
    """Ids by real namespace and document key, and the next offsets."""

    ids: dict[str, dict[bytes, Any]]
    offsets: dict[Partition, int]


class ChangeReader:
    """Reads the topics' events from offsets on. ``topics``: each stream topic's partitions."""

    def __init__(self, kafka: Access, topics: Mapping[str, int]) -> None:
        self._kafka = kafka
        self._places = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
        self._consumer: AIOKafkaConsumer | None = None

    async def open(self, offsets: Mapping[Partition, int]) -> dict[Partition, int]:
        """Begin at offsets; partitions that have none begin at their end. Return where each begins.

        `Lost` where Kafka has not all of it any more.
        """
        await self.close()
        consumer = AIOKafkaConsumer(
            **self._kafka.options(),
            client_id="crossfade reconcile",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        try:
            await consumer.start()
            self._consumer = consumer
            consumer.assign(self._places)
            first = await consumer.beginning_offsets(self._places)
            ends = await consumer.end_offsets(self._places)
        except (KafkaError, OSError, TimeoutError) as error:
            await consumer.stop()
            raise Transient(f"Kafka does not tell its offsets ({type(error).__name__})") from None
        begin = {one: offsets.get((one.topic, one.partition), ends[one]) for one in self._places}
        if any(not first[one] <= begin[one] <= ends[one] for one in self._places):
            raise Lost
        for one, offset in begin.items():
            consumer.seek(one, offset)
        return {(one.topic, one.partition): offset for one, offset in begin.items()}

    async def read(self, until: Mapping[Partition, int], most: int) -> Changes:
        """Return changed documents, of about ``most`` records, before the offsets ``until``.

        Nothing where there is nothing yet. `Lost` where Kafka has not all of it any more.
        """
        consumer = self._consumer
        assert consumer is not None
        changes = Changes({}, {})
        try:
            waiting = [
                one
                for one in self._places
                if await consumer.position(one) < until.get((one.topic, one.partition), 0)
            ]
            if not waiting:
                return changes
            fetched = await consumer.getmany(*waiting, timeout_ms=_POLL_MS, max_records=most)
        except OffsetOutOfRangeError:
            raise Lost from None
        except (KafkaError, OSError, TimeoutError) as error:
            raise Transient(f"Kafka does not tell what was changed ({type(error).__name__})") from None
        for one, records in fetched.items():
            place = one.topic, one.partition
            for record in records:
                if record.offset >= until.get(place, 0):
                    consumer.seek(one, record.offset)
                    break
                changes.offsets[place] = record.offset + 1
                _note(changes.ids, record.value)
        return changes

    async def ends(self, topics: Mapping[str, int]) -> dict[Partition, int]:
        """Return the next offset to come of each partition of some topics."""
        assert self._consumer is not None
        places = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
        try:
            ends = await self._consumer.end_offsets(places)
        except (KafkaError, OSError, TimeoutError) as error:
            raise Transient(f"Kafka does not tell its offsets ({type(error).__name__})") from None
        return {(one.topic, one.partition): offset for one, offset in ends.items()}

    async def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None


def _note(ids: dict[str, dict[bytes, Any]], value: bytes | None) -> None:
    try:
        event = decode(value or b"")
    except EnvelopeError:  # a dead letter: what it was about, the walk sees
        return
    if not event.control:
        ids.setdefault(event.namespace, {})[document_key(event.id)] = event.id
