"""Faust's consumer, delivering a fetched partition chunk as one message.

Faust makes two asyncio tasks for each message, which bounds it to some thousands a second. Here a message's
value is the list of records of one partition, and its offset that of the last: acknowledging it acknowledges
them all. Written against faust-streaming 0.15.3, ``faust/transport/consumer.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, Message

Offsets = Mapping[tuple[str, int], int]
DurableOffsets = Callable[[Offsets], Awaitable[Offsets]]
"""Returns the next offset of each partition as PostgreSQL has it; given the first that Kafka still has."""
TooSlow = Callable[[], None]

SEEK_WITHIN = 25.0  # seconds, less than Faust waits (broker_request_timeout)


class ConsumerThread(AIOKafkaConsumerThread):
    """Ends in order also where aiokafka's consumer is closed just after Kafka went away.

    A fetch that rests after its failure is cancelled by that, and cancels whoever closes (aiokafka 0.14.0,
    ``Fetcher.close``): the thread would end with a traceback, and Faust would not hear that it did.
    """

    async def on_thread_stop(self) -> None:
        """As its base."""
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            if self._consumer is not None:  # what its own end would have done last
                await self._consumer._client.close()


class BatchConsumer(Consumer):
    """Delivers chunks, and begins where PostgreSQL stands (docs/protocol.md A2)."""

    _seeks = 0
    _sought = -1  # the generation of the assignment that was sought last

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def durable_offsets(self, earliest: Offsets) -> Offsets:
        """As `DurableOffsets`, of the partitions assigned."""
        raise NotImplementedError

    def too_slow(self) -> None:
        """Hear that it was not found out in time where to begin."""
        raise NotImplementedError

    async def perform_seek(self) -> None:
        """Seek as at an assignment, or end this worker.

        Faust gives up waiting for it without a word, and reads on from anywhere, or nothing at all.
        """
        generation = self.app.consumer_generation_id
        try:
            async with asyncio.timeout(SEEK_WITHIN):
                await super().perform_seek()
                self._seeks, self._sought = self._seeks + 1, generation
        except TimeoutError:
            self.too_slow()
            raise

    def _in_place(self, seeks: int) -> bool:
        """Whether the present assignment was sought, and not again since there had been so many ``seeks``.

        Faust fetches while it still seeks, and a rebalance may begin and end while an answer is on its way.
        What that holds may lie beyond where the assignment begins: it is dropped and read again.
        """
        return self._seeks == seeks and self._sought == self.app.consumer_generation_id

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """Yield one message for each partition that has records."""
        while not self.flow_active and not self.should_stop:
            await self.wait(self.can_resume_flow.wait())
        seeks = self._seeks
        records, active = await self._wait_next_records(timeout)
        if records is None or self.should_stop:
            return
        if not self.flow_active or (records and not self._in_place(seeks)):
            await self.perform_seek()
            return
        for tp, chunk in records.items():
            if not self.flow_active or not self._in_place(seeks):
                return
            if active is None or tp in active or tp in self._buffered_partitions:
                message = self._to_message(tp, chunk[-1])
                message.value = chunk  # pyright: ignore[reportAttributeAccessIssue]
                # Faust drops without a word what lies before the last record it has seen, as all does of a
                # topic that was deleted and made anew. What comes twice is harmless.
                self._read_offset[tp] = None
                yield tp, message

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek each partition to the lower of Kafka's committed offset and PostgreSQL's.

        Kafka's alone is not enough: a PostgreSQL restored to an older state would never see again what the
        group has already committed.
        """
        committed = await super().seek_to_committed()
        earliest = await self.earliest_offsets(*committed) if committed else {}
        durable = await self.durable_offsets({(tp.topic, tp.partition): n for tp, n in earliest.items()})
        start = {
            tp: min(offset or 0, durable.get((tp.topic, tp.partition), 0)) for tp, offset in committed.items()
        }
        await self._thread.seek_wait(start)
        return start

    def _new_offset(self, tp: TP) -> int | None:
        # Chunks are acknowledged in order, each by its last offset: the highest is all there is to commit.
        acked = self._acked[tp]
        if not acked:
            return None
        highest = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return highest + 1

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Chunks leave gaps between their last offsets by design; there is nothing to fill."""


def transport_with(app: Any, url: Any, durable_offsets: DurableOffsets, too_slow: TooSlow) -> Transport:
    """Return a Faust transport whose consumers deliver chunks."""

    class _Consumer(BatchConsumer):
        async def durable_offsets(self, earliest: Offsets) -> Offsets:
            return await durable_offsets(earliest)

        def too_slow(self) -> None:
            too_slow()

    class _Transport(Transport):
        Consumer = _Consumer

    return _Transport(url, app)
