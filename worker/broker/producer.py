"""The idempotent producer: whole batches of records, one acknowledgement each."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from topics.declared import LARGEST_RECORD
from worker.broker.access import Access
from worker.errors import Fatal

Record = tuple[bytes, bytes]
"""Key and value."""

_BATCH_BYTES = 1024 * 1024
_FRAME = 64  # bytes of Kafka's format around a record within its batch, at most
_DELIVERY_MS = 60_000
_METADATA_MS = 10_000  # after which added partitions are noticed
_STOP_SECONDS = 3.0
# A request holds one batch of each of a broker's partitions, and a broker closes the connection on one of
# more than 100 MB (`socket.request.max.bytes`), again and again.
_UNACKNOWLEDGED_BYTES = 48 * 1024 * 1024


class Takes(NamedTuple):
    """What a topic takes."""

    partitions: int
    room: int
    """The most bytes that key and value of one record may have."""


class Producer:
    """Sends records in order within each partition; a failed send is `Fatal`, never skipped."""

    def __init__(self, kafka: Access, role: str, topics: Mapping[str, Takes]) -> None:
        self._kafka = kafka
        self._topics = topics
        self._unacknowledged = 0
        self._less = asyncio.Event()
        self._producer = AIOKafkaProducer(
            **kafka.options(),
            client_id=f"crossfade {role}",
            acks="all",
            enable_idempotence=True,
            max_batch_size=_BATCH_BYTES,
            max_request_size=LARGEST_RECORD + _BATCH_BYTES,
            request_timeout_ms=_DELIVERY_MS,
            metadata_max_age_ms=_METADATA_MS,
        )

    async def start(self) -> None:
        """Connect; `ServiceUnavailable` when Kafka cannot be reached."""
        try:
            await self._producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._producer.stop()
            raise self._kafka.unreachable(error) from None

    async def stop(self) -> None:
        """Close the connections. What was not acknowledged is sent again by the next publisher."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._producer.stop()
        except TimeoutError:
            # It waits for acknowledgements without end while Kafka is away.
            if (sender := self._producer._sender) is not None:
                await sender.close()
            await self._producer.client.close()

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> list[Future[Any]]:
        """Hand records over in order; return one future for each batch, to be given to `acknowledged`.

        Waits while too much is unacknowledged. `Fatal` for a record that the topic has no room for, and
        where the topic has another number of partitions by now: those of the keys, and those that control
        records go to, must be reckoned anew.
        """
        acknowledgements: list[Future[Any]] = []
        room = self._topics[topic].room
        most = min(room, _BATCH_BYTES)
        batch, size = self._producer.create_batch(), 0
        try:
            for key, value in records:
                bytes_ = len(key) + len(value)
                if bytes_ > room:
                    raise Fatal(
                        f"topic {topic} takes records of {room} bytes at most, and one has "
                        f"{bytes_} even without its document",
                        remedy="raise its max.message.bytes: a document's id is that long",
                    )
                if batch.record_count() and size + bytes_ + _FRAME > most:
                    acknowledgements.append(await self._hand_over(batch, size, topic, partition))
                    batch, size = self._producer.create_batch(), 0
                appended = batch.append(key=key, value=value, timestamp=None)
                assert appended is not None
                size += bytes_ + _FRAME
            if batch.record_count():
                acknowledgements.append(await self._hand_over(batch, size, topic, partition))
        except KafkaError as error:
            raise _failed(topic, error) from None
        return acknowledgements

    async def _hand_over(self, batch: BatchBuilder, size: int, topic: str, partition: int) -> Future[Any]:
        while self._unacknowledged and self._unacknowledged + size > _UNACKNOWLEDGED_BYTES:
            self._less.clear()
            await self._less.wait()
        self._unacknowledged += size
        try:
            known, there = self._topics[topic].partitions, await self._producer.partitions_for(topic)
            if len(there) != known:
                raise Fatal(
                    f"topic {topic} has {len(there)} partitions now, and had {known}",
                    remedy="the next start goes by the new number",
                )
            acknowledgement = await self._producer.send_batch(batch, topic, partition=partition)
        except BaseException:
            self._settled(size)
            raise
        acknowledgement.add_done_callback(lambda _: self._settled(size))
        return acknowledgement

    def _settled(self, size: int) -> None:
        self._unacknowledged -= size
        self._less.set()

    async def send_all(self, records: Mapping[tuple[str, int], Sequence[Record]]) -> list[Future[Any]]:
        """Send to many partitions at once; the records of each stay in order."""
        sent = await asyncio.gather(
            *(self.send(topic, partition, some) for (topic, partition), some in records.items())
        )
        return [acknowledgement for some in sent for acknowledgement in some]


async def acknowledged(acknowledgements: Sequence[Future[Any]]) -> None:
    """Return when the broker has acknowledged all; `Fatal` when it refused one."""
    for acknowledgement in acknowledgements:
        if not acknowledgement.done():
            await asyncio.wait([acknowledgement])  # unlike `await`, leaves it alone when we are cancelled
        try:
            acknowledgement.result()
        except KafkaError as error:
            raise _failed("", error) from None


def _failed(topic: str, error: KafkaError) -> Fatal:
    where = f" for topic {topic}" if topic else ""
    return Fatal(
        f"Kafka did not take a batch{where} ({type(error).__name__})",
        remedy="check the brokers; the next start sends it again from the last saved token",
    )
